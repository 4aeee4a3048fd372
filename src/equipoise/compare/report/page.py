"""One self-contained page: verdict, tables, figures, the slider and how to reproduce them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from equipoise.compare import wording
from equipoise.compare.card import card, claim, source
from equipoise.compare.report import curves, figures, ranking
from equipoise.compare.report.curves import StepCounts
from equipoise.compare.report.drawing import Drawn
from equipoise.compare.report.mistakes import Mistake, mistakes
from equipoise.compare.report.ranking import Overlay
from equipoise.compare.report.template import columns, environment, is_binary, secondary
from equipoise.compare.results import Result, distribution
from equipoise.compare.wording import metric_label
from equipoise.core.config import Study
from equipoise.core.documents import Comparison, IngestSummary, PerThousand, RoundChoice
from equipoise.core.environment import PACKAGE, code_digest
from equipoise.core.files import atomic_path, digest_of, read_table
from equipoise.core.text import in_words
from equipoise.core.version import VERSION
from equipoise.evaluation import metrics, patients
from equipoise.evaluation.metrics import Endpoint

#: Pictures of mistakes fill at most this much of the page, which stays under 4 MB.
_PICTURES_BYTES = 2_500_000
#: Packages whose versions the page names.
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
#: The code behind a page: what the stage `compare` depends on in dvc.yaml, and nothing else. A page that knew of git,
#: or of other code, would be another page in every clone, and DVC would not know why.
CODE = (
    "compare",
    "core/dicom.py",
    "core/greylevels.py",
    "core/images.py",
    "core/rasters.py",
    "embed",
    "evaluation",
    "ingest",
    "scenario",
    "split",
    "strategies",
)
#: Enough digits of a digest to tell two apart.
_DIGITS = 12


def write(
    study: Study,
    comparison: Comparison,
    results: list[Result],
    moved: Any | None = None,
    leaks: Sequence[str] = (),
) -> Path:
    """Write report.html, and the curves as CSV for `dvc plots`, beside comparison.json.

    Args:
        study: Name and settings.
        comparison: Contents of evidence.json; what a shorter file lacks is said in its section.
        results: What it was made from.
        moved: What `revisions.moved_patients` says of another revision, for a section of its own.
        leaks: What leaks would have been worth. The stage `compare` does not give them: they depend on what has been
            measured beside it, and its page on its dependencies alone.

    Returns:
        The page's path.
    """
    wrong = mistakes(study, comparison.winners, results)
    slider = _slider(study, comparison, results)
    ingest = IngestSummary.read(study.manifest_path.with_suffix(".json"))
    template = environment(comparison).get_template("page.html")
    page = template.render(
        comparison=comparison,
        facts=_facts(study, comparison, ingest, results),
        binary=is_binary(comparison),
        columns=columns(comparison),
        columns_beside=secondary(comparison),
        claims=_claims(comparison),
        per_thousand=_per_thousand(comparison),
        floor_missed=_floor_missed(study, comparison),
        leaks=leaks,
        ingest=ingest,
        drawings=_drawings(study, comparison, results),
        slider=[entry.as_json() for entry in slider],
        moved=moved,
        choices=_choices(results),
        mistakes=wrong,
        mistakes_shown=that_fit(wrong.entries),
        provenance=_provenance(results, study.reports_path / "evidence.json"),
        cards=_cards(study, comparison.winners),
    )
    _write_plots(study.reports_path / "plots", results)
    path = study.reports_path / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _cards(study: Study, winners: Mapping[str, str]) -> dict[str, str]:
    return {backbone: card(study, backbone, winner) for backbone, winner in winners.items()}


def _write_plots(folder: Path, results: list[Result]) -> None:
    for name, table in curves.tables(results).items():
        with atomic_path(folder / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6f", lineterminator="\n")


# --- what stands on top ---------------------------------------------------------------------------


def _facts(
    study: Study, comparison: Comparison, ingest: IngestSummary, results: Sequence[Result]
) -> dict[str, str]:
    """Dataset, patients, images, split and code of a study, each with its name."""
    classes = []
    for name, count in wording.counted(comparison.test, comparison.units).items():
        is_positive = is_binary(comparison) and name == comparison.positive_class
        classes.append(f"{count:,} {name}{' (positive)' if is_positive else ''}")
    patients_tested = f"{comparison.test_patients:,} tested: {in_words(classes)}"
    if comparison.units == "images":
        patients_tested = f"no ids; {comparison.test_images:,} images tested: {in_words(classes)}"
    return {
        "Dataset": source(study.dataset, comparison.group_by).title,
        "Patients": patients_tested,
        "Images": f"{ingest.images:,}",
        "Split": _split_words(study, comparison),
        "Code and settings": code_of(results),
    }


def _split_words(study: Study, comparison: Comparison) -> str:
    scheme = comparison.scheme
    if comparison.folds > 1:
        repeats = study.settings.split.repeats
        dealt = f"{comparison.folds} x {repeats}" if repeats > 1 else f"{comparison.folds}"
        scheme = f"{dealt} folds"
    return f"{scheme}, by {comparison.group_by}"


def code_of(results: Sequence[Result], package: Path = PACKAGE) -> str:
    """Which code and which settings are behind a page: their digests, in this order.

    Args:
        results: That the page shows.
        package: Folder of the code.
    """
    code = code_digest(*CODE, package=package)
    settings = digest_of([result.summary.settings for result in results])
    return f"{code[:_DIGITS]}, {settings[:_DIGITS]}"


# --- the tables -----------------------------------------------------------------------------------


def _claims(comparison: Comparison) -> dict[str, str]:
    """What the winner of each backbone claims."""
    claims = {}
    for backbone, winner in comparison.winners.items():
        claims[backbone] = claim(comparison, backbone, winner)
    return claims


def _floor_missed(study: Study, comparison: Comparison) -> dict[str, dict[str, str]]:
    """Backbone -> scenario -> the sensitivities by which its locked threshold misses the floor, where it does."""
    numbers: dict[str, dict[str, list[str]]] = {backbone: {} for backbone in comparison.rows}
    for promise in wording.broken_promises(comparison, study.settings.threshold.rule):
        of_row = numbers[promise.backbone].setdefault(promise.scenario, [])
        of_row.append(f"{wording.interval_text(promise.reached)} of {promise.units}")
    missed: dict[str, dict[str, str]] = {}
    for backbone, of_backbone in numbers.items():
        missed[backbone] = {scenario: in_words(said) for scenario, said in of_backbone.items()}
    return missed


@dataclass(frozen=True)
class Thousand:
    """What the remedies of a backbone change for 1,000 patients or images.

    Attributes:
        units: patients, or images where there are no ids.
        positives: How many of the 1,000 are positive.
        rows: Scenario -> operating point -> differences to the baseline.
    """

    units: str
    positives: float
    rows: dict[str, dict[str, PerThousand]]


def _per_thousand(comparison: Comparison) -> dict[str, Thousand | None]:
    """What the table of differences of each backbone holds; None where nothing was counted."""
    tables: dict[str, Thousand | None] = {}
    for backbone, of_backbone in comparison.rows.items():
        counted = {name: row.per_1000 for name, row in of_backbone.items() if row.per_1000}
        units = _units_of_all(counted.values())
        tables[backbone] = None
        if units:
            rows = {name: by_units[units] for name, by_units in counted.items()}
            first = next(iter(rows.values()))
            tables[backbone] = Thousand(units, first["locked"].positives_per_1000, rows)
    return tables


def _units_of_all(counted: Collection[Mapping[str, Any]]) -> str:
    """What all scenarios are counted in: patients where they can be; empty where nothing was counted."""
    for units in ("patients", "images"):
        if counted and all(units in by_units for by_units in counted):
            return units
    return ""


class Choice(NamedTuple):
    """A line in the table of what the search chose; `choice` is an entry of best.json."""

    backbone: str
    scenario: str
    choice: RoundChoice


def _choices(results: Sequence[Result]) -> list[Choice]:
    lines = []
    for result in results:
        for choice in result.choices:
            entry = RoundChoice.model_validate(choice)
            lines.append(Choice(result.backbone, result.scenario, entry))
    return lines


@dataclass(frozen=True)
class Provenance:
    """What the numbers were made from.

    Attributes:
        settings: Of the first result; those of the others are alike.
        digests: "backbone/scenario" -> digests of what the result was made from.
        equipoise: This package's version.
        versions: Versions of Python and the packages.
        evidence_md5: By which dvc.lock names the numbers, and git finds their commit.
    """

    settings: dict[str, Any]
    digests: dict[str, dict[str, str]]
    equipoise: str
    versions: dict[str, str]
    evidence_md5: str


def _provenance(results: Sequence[Result], evidence: Path) -> Provenance:
    digests = {}
    for result in results:
        digests[f"{result.backbone}/{result.scenario}"] = result.summary.digests
    # Without its third number, which numbers do not depend on and machines differ in.
    python = ".".join(platform.python_version_tuple()[:2])
    versions = {"equipoise": VERSION, "python": python}
    for name in _LIBRARIES:
        versions[name] = importlib.metadata.version(name)
    settings = results[0].summary.settings
    evidence_md5 = hashlib.md5(evidence.read_bytes(), usedforsecurity=False).hexdigest()
    return Provenance(settings, digests, VERSION, versions, evidence_md5)


# --- the figures ----------------------------------------------------------------------------------


@dataclass
class Drawings:
    """The figures of the page, by backbone where there is one for each.

    Attributes:
        forest: Differences to the baseline; None where the baseline stands alone.
        ranking: ROC and precision-recall curves.
        calibration: Reliability.
        decisions: Decision curves; empty for more than two classes.
        distributions: Images per class.
        searches: History of the search; None where nothing was searched.
    """

    forest: Drawn | None = None
    ranking: dict[str, Overlay] = field(default_factory=dict)
    calibration: dict[str, Drawn] = field(default_factory=dict)
    decisions: dict[str, Drawn] = field(default_factory=dict)
    distributions: dict[str, Drawn] = field(default_factory=dict)
    searches: dict[str, Drawn | None] = field(default_factory=dict)


def _drawings(study: Study, comparison: Comparison, results: Sequence[Result]) -> Drawings:
    drawings = Drawings()
    if comparison.comparisons:
        drawings.forest = figures.forest(comparison)
    for backbone in comparison.rows:
        of_backbone = [result for result in results if result.backbone == backbone]
        drawings.ranking[backbone] = ranking.overlay(of_backbone, comparison.winners[backbone])
        drawings.calibration[backbone] = figures.reliability(of_backbone)
        if is_binary(comparison):
            drawings.decisions[backbone] = figures.decision(of_backbone)
        counts = distribution(of_backbone)
        drawings.distributions[backbone] = figures.distribution(
            counts, comparison.classes, backbone
        )
        drawings.searches[backbone] = _search_history(study, of_backbone)
    return drawings


def _search_history(study: Study, results: Sequence[Result]) -> Drawn | None:
    """History of the searches on one backbone; None where nothing was searched."""
    searches = {}
    for result in results:
        folder = study.result_path(result.backbone, result.scenario)
        path = folder / "trials.parquet"
        if not path.is_file():
            continue
        trials, _ = read_table(path)
        if "state" in trials and "complete" in set(trials["state"]):
            searches[result.scenario] = trials
    if not searches:
        return None
    tune = study.settings.tune
    objective = metric_label(Endpoint("free", tune.objective), tune.sensitivity_floor)
    maximise = metrics.load_metric(tune.objective).better == "higher"
    return figures.history(searches, objective, maximise, results[0].backbone)


# --- the slider -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliderEntry:
    """What the slider counts for one class of one result.

    Attributes:
        name: Backbone and scenario, with more than two classes also the class.
        class_name: Whose probability the threshold is on.
        units: Images, and patients where there are ids -> counts for each repeat and seed.
    """

    name: str
    class_name: str
    units: dict[str, list[StepCounts]]

    def as_json(self) -> dict[str, Any]:
        """Plain data with the names that the page's script reads."""
        units = {}
        for unit, entries in self.units.items():
            units[unit] = [dataclasses.asdict(entry) for entry in entries]
        return {"name": self.name, "class": self.class_name, "units": units}


def _slider(study: Study, comparison: Comparison, results: Sequence[Result]) -> list[SliderEntry]:
    entries = []
    for result in results:
        tested = {"images": result.predictions}
        if comparison.units == "patients":
            tested["patients"] = patients.by_patient(
                result.predictions,
                "mean",
                study.settings.threshold,
                study.settings.tune.sensitivity_floor,
            )
        for label, curve_name in curves.shown(result).items():
            name = f"{result.backbone}, {curve_name}"
            units = {unit: curves.counts(rows, label) for unit, rows in tested.items()}
            entries.append(SliderEntry(name, comparison.classes[label], units))
    return entries


# --- the mistakes ---------------------------------------------------------------------------------


def that_fit(entries: Sequence[Mistake]) -> list[Mistake]:
    """Take the first mistakes whose pictures fit into the page.

    A picture that is no data URI of an image is left out.
    """
    shown = []
    size_bytes = 0
    for entry in entries:
        picture = _image_or_nothing(entry.picture)
        overlay = _image_or_nothing(entry.overlay)
        size_bytes += len(picture) + len(overlay)
        if size_bytes > _PICTURES_BYTES:
            break
        shown.append(dataclasses.replace(entry, picture=picture, overlay=overlay))
    return shown


def _image_or_nothing(uri: str) -> str:
    return uri if uri.startswith("data:image/") else ""
