"""One self-contained page: the verdict, the tables, the figures, the slider and how to reproduce them."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from equipoise import __version__
from equipoise.compare import patients, wording
from equipoise.compare.card import card
from equipoise.compare.report import curves, figures
from equipoise.compare.report.mistakes import mistakes
from equipoise.compare.results import Result, distribution
from equipoise.compare.wording import metric_label
from equipoise.core.config import Study
from equipoise.core.files import atomic_path, read_json, read_table
from equipoise.evaluation import metrics
from equipoise.scenario import tuning

#: Pictures of mistakes fill at most this much of the page, which stays under 6 MB.
_PICTURES_BYTES = 3_500_000
_LIBRARIES = (
    "imbalanced-learn",
    "keras",
    "numpy",
    "optuna",
    "pandas",
    "scikit-learn",
    "scipy",
    "tensorflow",
)


def run(
    study: Study,
    comparison: dict[str, Any],
    results: list[Result],
    moved: dict[str, Any] | None = None,
) -> Path:
    """Write report.html and the curves as CSV beside comparison.json; return the page's path. Names are escaped.

    Args:
        study: Name and settings.
        comparison: Contents of evidence.json; what an older or shorter file lacks is said in its section.
        results: What it was made from.
        moved: What `versions.moved_patients` says of another revision, for a section of its own.
    """
    environment = Environment(
        loader=PackageLoader("equipoise.compare.report", "."),
        autoescape=select_autoescape(["html"]),
    )
    environment.undefined = StrictUndefined
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}"
    environment.filters["sha256"] = lambda text: base64.b64encode(
        hashlib.sha256(text.encode()).digest()
    ).decode()
    binary, primary = len(comparison["classes"]) == 2, comparison["primary"]
    floor = comparison["sensitivity_floor"]
    own = {
        name: [result for result in results if result.backbone == name]
        for name in comparison["rows"]
    }
    wrong = mistakes(study, comparison, results)
    page = environment.get_template("page.html").render(
        comparison=comparison,
        binary=binary,
        version=__version__,
        label=lambda name: metric_label(name, floor, binary),
        verdict=wording.verdict(comparison),
        first_columns=list(dict.fromkeys(["free.auroc", primary])),
        point_columns=["sensitivity", "specificity"]
        if binary
        else ["accuracy", "balanced_accuracy"],
        forest=_embed(figures.forest(comparison)) if comparison["comparisons"] else None,
        ranking=_by_backbone(own, figures.roc, figures.precision_recall),
        calibration=_by_backbone(own, figures.reliability),
        decisions=_by_backbone(own, figures.decision) if binary else {},
        distributions=_by_backbone(
            own,
            lambda mine: figures.distribution(
                distribution(mine), comparison["classes"], mine[0].backbone
            ),
        ),
        searches={name: _search(study, mine) for name, mine in own.items()},
        slider=[entry for result in results for entry in _slider(study, comparison, result)],
        mistakes=wrong,
        mistakes_shown=_fitting(wrong["rows"]),
        cards={name: card(study, name, winner) for name, winner in comparison["winners"].items()},
        moved=moved,
        ingest=read_json(study.manifest_path.with_suffix(".json")),
        choices=[
            (result.backbone, result.scenario, choice)
            for result in results
            for choice in result.choices
        ],
        digests={
            f"{result.backbone}/{result.scenario}": result.summary["digests"] for result in results
        },
        settings=results[0].summary["settings"],
        versions={
            "equipoise": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
    )
    for name, table in curves.tables(results).items():
        with atomic_path(study.reports_path / "plots" / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6f", lineterminator="\n")
    path = study.reports_path / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _embed(drawn: figures.Drawn) -> dict[str, Any]:
    return {**vars(drawn), "svg": Markup(drawn.svg)}  # noqa: S704 - drawn here, names escaped by matplotlib


def _by_backbone(own: dict[str, list[Result]], *draw: Any) -> dict[str, list[dict[str, Any]]]:
    return {name: [_embed(each(mine)) for each in draw] for name, mine in own.items()}


def _search(study: Study, results: list[Result]) -> dict[str, Any] | None:
    """History and importances of the searches on one backbone; None where nothing was searched."""
    paths = {
        result.scenario: study.result_path(result.backbone, result.scenario) for result in results
    }
    files = {
        name: path
        for name, folder in paths.items()
        if (path := folder / "trials.parquet").is_file()
    }
    tables = {name: read_table(path)[0] for name, path in files.items()}
    searched = {
        name: own
        for name, own in tables.items()
        if "state" in own and (own["state"] == "complete").any()
    }
    if not searched:
        return None
    tune = study.settings.tune
    maximise = metrics.load_metric(tune.objective).better == "higher"
    drawn = figures.history(
        searched,
        metric_label(f"free.{tune.objective}", tune.sensitivity_floor),
        maximise,
        results[0].backbone,
    )
    return {
        "figure": _embed(drawn),
        "importances": {
            name: tuning.importances(trials, maximise) for name, trials in searched.items()
        },
    }


def _slider(study: Study, comparison: dict[str, Any], result: Result) -> list[dict[str, Any]]:
    """What the slider counts for one result: one entry per class that has a threshold."""
    tested = {"images": result.predictions}
    if comparison["units"] == "patients":
        settings = study.settings
        tested["patients"] = patients.by_patient(
            result.predictions, "mean", settings.threshold, settings.tune.sensitivity_floor
        )
    names = comparison["classes"]
    return [
        {
            "name": f"{result.backbone}, {result.scenario}"
            + (f", {names[label]}" if len(names) > 2 else ""),
            "class": names[label],
            "units": {
                unit: curves.counts(predictions, label) for unit, predictions in tested.items()
            },
        }
        for label in curves.shown(result)
    ]


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first mistakes whose pictures fit; a picture that is no data URI of an image is left out."""
    shown, size = [], 0
    for row in rows:
        uris = {
            key: uri
            for key in ("picture", "overlay")
            if (uri := row.get(key) or "").startswith("data:image/")
        }
        size += sum(map(len, uris.values()))
        if size > _PICTURES_BYTES:
            break
        shown.append({**row, "picture": "", "overlay": "", **uris})
    return shown
