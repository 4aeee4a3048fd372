"""One self-contained page: the verdict, the table, the figures and how to reproduce them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from equipoise import __version__
from equipoise.compare import Result, distribution, metric_label
from equipoise.config import Study
from equipoise.records import atomic_path, read_json
from equipoise.report import figures


def run(study: Study, comparison: dict[str, Any], results: list[Result], moved: dict[str, Any] | None = None) -> Path:
    """Write report.html beside comparison.json and return its path. Names and labels are escaped.

    Args:
        study: Name and settings.
        comparison: Contents of comparison.json.
        results: What it was made from.
        moved: What `versions.moved_patients` says of another revision, for a section of its own.
    """
    environment = Environment(loader=PackageLoader("equipoise.report", "."), autoescape=select_autoescape(["html"]))
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}"
    primary = comparison["primary"]
    page = environment.get_template("page.html").render(
        comparison=comparison,
        version=__version__,
        label=lambda name: metric_label(name, comparison["sensitivity_floor"]),
        columns=_columns(comparison),
        forest=Markup(figures.forest(comparison, metric_label(primary, comparison["sensitivity_floor"]))),
        curves=[
            (backbone, Markup(figures.roc(own)), Markup(figures.reliability(own)))
            for backbone in comparison["rows"]
            for own in [[result for result in results if result.backbone == backbone]]
        ],
        distributions=[
            (backbone, rows, Markup(figures.distribution(rows, comparison["classes"])))
            for backbone in comparison["rows"]
            for rows in [distribution([result for result in results if result.backbone == backbone])]
        ],
        moved=moved,
        ingest=read_json(study.manifest_path.with_suffix(".json")),
        choices=[(result.backbone, result.scenario, choice) for result in results for choice in result.choices],
        digests=results[0].summary["digests"],
        settings=results[0].summary["settings"],
    )
    path = study.reports_path / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _columns(comparison: dict[str, Any]) -> list[str]:
    names = ["free.auroc", "free.average_precision", comparison["primary"]]
    for point in ("raw", "locked"):
        names += [f"{point}.{name}" for name in ("accuracy", "balanced_accuracy", "sensitivity", "specificity")]
        names += [f"{point}.{name}" for name in ("precision", "f1", "brier")]
    return list(dict.fromkeys(names))
