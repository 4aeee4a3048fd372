"""What the pages share: their templates, how numbers are written in them, and the columns of their tables."""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from equipoise.compare import wording
from equipoise.compare.wording import metric_label
from equipoise.core.documents import Comparison, Difference
from equipoise.evaluation.metrics import Endpoint


def is_binary(comparison: Comparison) -> bool:
    """Whether there are two classes."""
    return len(comparison.classes) == 2


# --- the template's filters -----------------------------------------------------------------------


def environment(comparison: Comparison) -> Environment:
    """Prepare the template: names are escaped, a name that does not exist is an error."""
    floor = comparison.sensitivity_floor
    binary = is_binary(comparison)

    def label(endpoint: str) -> str:
        return metric_label(Endpoint.parse(endpoint), floor, binary)

    made = Environment(
        loader=PackageLoader("equipoise.compare.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
    )
    made.filters["label"] = label
    made.filters["number"] = _number
    made.filters["signed"] = _signed
    made.filters["finely"] = _finely
    made.filters["detectable"] = _detectable
    made.globals["to_settle"] = _to_settle
    made.filters["sha256"] = _sha256
    return made


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _finely(value: float | None) -> str:
    """Differences of remedies are small: four digits."""
    return "–" if value is None else f"{value:+.4f}"


def _detectable(value: float | None) -> str:
    """The smallest difference that these data show, as the sentences round it."""
    return f"{wording.rounded_up(value):g}" if value else "–"


def _to_settle(delta: Difference, margin: float) -> str:
    """About how many patients would settle the margin, as the sentences round it."""
    if not delta.detectable or delta.patients_to_settle is None:
        return "–"
    if delta.detectable <= margin:
        return "enough"
    return f"about {wording.rounded_up(delta.patients_to_settle):,.0f}"


def _sha256(text: str) -> str:
    """Digest of a script as a Content-Security-Policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b64encode(digest).decode()


# --- the tables ---------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Metrics in the table of scenarios.

    Attributes:
        ranked: Endpoints without a threshold, and the primary one, as "point.metric".
        decided: Metrics that stand at both operating points.
    """

    ranked: list[str]
    decided: list[str]


def columns(comparison: Comparison) -> Columns:
    """The metrics in the table of a comparison."""
    auroc = str(Endpoint("free", "auroc"))
    ranked = [auroc]
    if comparison.primary != auroc:
        ranked.append(comparison.primary)
    if is_binary(comparison):
        return Columns(ranked, ["sensitivity", "specificity"])
    return Columns(ranked, ["accuracy", "balanced_accuracy"])


def secondary(comparison: Comparison) -> list[str]:
    """Endpoints whose differences stand beside the primary one, without a verdict."""
    endpoints: dict[str, None] = {}
    for rows in comparison.rows.values():
        for row in rows.values():
            endpoints.update(dict.fromkeys(row.delta))
    endpoints.pop(comparison.primary, None)
    return list(endpoints)
