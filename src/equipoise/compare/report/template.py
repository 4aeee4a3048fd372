"""What the pages share: their templates, how numbers are written in them, and the columns of their tables."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from equipoise.compare import wording
from equipoise.core.documents import Comparison, Difference
from equipoise.evaluation.metrics import Endpoint

#: The package of this file, which also holds what the templates of all pages share.
_HERE = "equipoise.compare.report"


def is_binary(comparison: Comparison) -> bool:
    """Whether there are two classes."""
    return len(comparison.classes) == 2


# --- the template's filters -----------------------------------------------------------------------


def environment(comparison: Comparison, package: str = _HERE) -> Environment:
    """Prepare a page: names are escaped, a name that does not exist is an error, no number is a dash.

    Args:
        comparison: What the page is about.
        package: Where its template lies; the parts that pages share lie here.
    """
    folders = dict.fromkeys([package, _HERE])
    made = Environment(
        loader=ChoiceLoader([PackageLoader(folder, ".") for folder in folders]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        finalize=_or_dash,
    )
    made.filters["label"] = wording.labelled(comparison.sensitivity_floor, is_binary(comparison))
    made.filters["number"] = wording.fixed
    made.filters["signed"] = wording.signed
    made.filters["finely"] = _finely
    made.filters["whole"] = _whole
    made.filters["setting"] = wording.setting_text
    made.filters["chance"] = _chance
    made.filters["detectable"] = _detectable
    made.filters["sentences"] = _sentences
    made.filters["themed"] = _themed
    made.filters["rendered"] = _rendered
    made.filters["sha256"] = _sha256
    made.globals["to_settle"] = _to_settle
    made.globals["footnotes"] = Footnotes
    return made


def _or_dash(value: Any) -> Any:
    """What stands in a page where a number does not exist."""
    return "–" if value is None else value


def _finely(value: float | None) -> str | None:
    """Differences of remedies are small: four digits."""
    return wording.signed(value, digits=4)


def _whole(value: float | None) -> str | None:
    """A difference of patients: whole ones, with the sign."""
    if math.isnan(wording.number(value)):
        return None
    units = round(wording.number(value))
    return f"{units:+d}" if units else "0"


def _chance(p_value: float | None) -> str | None:
    """A p, which is never 0."""
    return "< 0.001" if p_value is not None and p_value < 0.001 else wording.fixed(p_value)


def _detectable(value: float | None) -> str | None:
    """The smallest difference that these data show, as the sentences round it."""
    return f"{wording.rounded_up(value):g}" if value else None


def _to_settle(delta: Difference, margin: float) -> str | None:
    """About how many patients would settle the margin, as the sentences round it."""
    if not delta.detectable or delta.patients_to_settle is None:
        return None
    if delta.detectable <= margin:
        return "enough"
    return f"about {wording.rounded_up(delta.patients_to_settle):,.0f}"


def _sentences(text: str) -> list[str]:
    """The sentences of a headline: the first one is the verdict.

    >>> _sentences("Too few, by 0.2. No remedy is better.")
    ['Too few, by 0.2.', 'No remedy is better.']
    """
    return re.split(r"(?<=[.]) (?=[A-Z])", text)


#: A colour of a figure, as matplotlib writes it.
_COLOUR = re.compile(r"(?<=: )#([0-9a-f]{6})(?=[;\"])")


def _themed(svg: str) -> str:
    """Let a page say which colours a figure has, so that it can be read on dark paper too."""
    return _COLOUR.sub(r"var(--x\1, #\1)", svg)


#: How far the headings of a model card lie below those of the page.
_DEEPER = 3


def _rendered(markdown: str) -> Markup:
    """A model card as HTML; what looks like markup in a name stays text, and nothing in it is a link."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
    tokens = reader.parse(markdown)
    heading = ""
    for token, following in itertools.pairwise(tokens):
        if token.type == "heading_open":
            heading = following.content
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _DEEPER, 6)}"
        if token.type == "table_open":
            token.attrSet("aria-label", heading)
    html = reader.renderer.render(tokens, reader.options, {})
    return Markup(html)  # noqa: S704 - markdown-it escapes what is no Markdown


def _sha256(text: str) -> str:
    """Digest of a script as a Content-Security-Policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b64encode(digest).decode()


# --- footnotes ------------------------------------------------------------------------------------


class Footnotes:
    """What is said below a table, in the order in which its cells refer to it; each once.

    Args:
        name: Of the table, so that no two notes of a page have one id.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._texts: list[str] = []

    def mark(self, text: str) -> Markup:
        """The letter that stands in a cell."""
        if text not in self._texts:
            self._texts.append(text)
        letter = _letter(self._texts.index(text))
        return Markup('<sup><a role="doc-noteref" href="#{}-{}">{}</a></sup>').format(
            self.name, letter, letter
        )

    def listed(self) -> list[tuple[str, str]]:
        """Letter and text of each note."""
        return [(_letter(place), text) for place, text in enumerate(self._texts)]


def _letter(place: int) -> str:
    """a, b, ..., z, a1, b1, ..."""
    turn, letter = divmod(place, 26)
    return chr(ord("a") + letter) + (str(turn) if turn else "")


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
