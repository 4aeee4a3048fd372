"""The model card of one result, made from its files alone; the text is the template card.md.

It has the sections of Mitchell et al. 2019, with the items of CLAIM 2024 and TRIPOD+AI that apply.
"""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined

from equipoise.compare import evidence, wording
from equipoise.compare.wording import primary_label
from equipoise.core.config import Study
from equipoise.core.documents import (
    Calibration,
    Choices,
    Comparison,
    IngestSummary,
    Interval,
    MetricTable,
    RoundChoice,
    ScenarioRow,
    ScenarioSummary,
    ServedModel,
    SplitSummary,
)
from equipoise.core.records import CALIBRATED, Predictions
from equipoise.evaluation import metrics
from equipoise.evaluation.intervals import POINTS
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.sample import decide
from equipoise.ingest.datasets import base as datasets

FILE_NAME = "MODEL_CARD.md"
_ABSENT = "not measured"


def card(
    study: Study, backbone: str, scenario: str, software: Mapping[str, str] | None = None
) -> str:
    """Write the card of one result as Markdown.

    What the files do not hold is said to be not measured.

    Args:
        study: Whose manifest, split and comparison.
        backbone: Of the result.
        scenario: Of the result.
        software: Versions and commit: no file of a result holds them.

    Raises:
        DataError: When the manifest, the split, the metrics or the predictions are not there.
    """
    folder = study.result_path(backbone, scenario)
    ingest = IngestSummary.read(study.manifest_path.with_suffix(".json"))
    splits = SplitSummary.read(study.splits_path.with_suffix(".json"))
    summary = ScenarioSummary.read(folder / "metrics.json")
    choices = Choices.read(folder / "best.json").root
    compared = _compared(study.reports_path, backbone, scenario, summary.result_digest)
    predictions = Predictions.read(folder / "predictions.parquet")
    template = _environment(summary).get_template("card.md")
    return template.render(
        study=study.name,
        backbone=backbone,
        scenario=scenario,
        ingest=ingest,
        splits=splits,
        summary=summary,
        model=_model(folder),
        settings=_settings_by_round(choices),
        fitted_on="the pooled out-of-fold predictions" if splits.scheme == "kfold" else "val",
        source=source(study.dataset, splits.group_by),
        left_out=_left_out(study.manifest_path.with_suffix(".quarantine.csv")),
        compared=compared.comparison,
        row=compared.row,
        said=_said(compared, backbone, scenario, study.settings.threshold.rule),
        subgroups=_subgroups(compared.row),
        measured=_measured(summary, compared.row),
        failures=_failures(predictions, summary.classes),
        software=software or {},
    )


# --- what is said of a result ---------------------------------------------------------------------


def said(comparison: Comparison, backbone: str, scenario: str, rule: str) -> list[str]:
    """The sentences that the page, the card and the registered version say of a result.

    They are the headline, the result's own sentence, and what a winner claims, or a promise that
    another result has broken. Where the short form of a comparison holds no sentence of its own, all of them are given.

    Args:
        comparison: That holds the result.
        backbone: Of the result.
        scenario: Of the result.
        rule: By which the threshold was locked.
    """
    row = comparison.rows[backbone][scenario]
    sentences = [comparison.headline, row.reason]
    if row.delta and not row.reason:
        sentences = [comparison.verdict]
    wins = comparison.winners.get(backbone) == scenario
    if wins:
        sentences.append(claim(comparison, backbone, scenario))
    if not wins:  # of winners the headline says it
        sentences.append(broken_promise(comparison, backbone, scenario, rule))
    return [sentence for sentence in sentences if sentence]


def claim(comparison: Comparison, backbone: str, scenario: str) -> str:
    """What a winner claims: the cautious end of its interval, never its own estimate."""
    row = comparison.rows[backbone][scenario]
    delta = row.delta.get(comparison.primary)
    if delta is None:
        return f"The winner on {backbone} is doing nothing: no gain is claimed."
    primary = Endpoint.parse(comparison.primary)
    lower_is_better = metrics.REGISTRY[primary.metric].better == "lower"
    end = delta.high if lower_is_better else delta.low
    if end is None:
        return (
            f"The winner on {backbone} is {scenario}, and no gain is claimed: there is no interval."
        )
    level = f"{100 * (1 - comparison.alpha):g} %"
    which = "high" if lower_is_better else "low"
    return (
        f"The winner on {backbone} is {scenario}; its claim is the {which} end of the simultaneous {level} "
        f"interval: {end:+.4f} in {primary_label(comparison)} against doing nothing."
    )


def broken_promise(comparison: Comparison, backbone: str, scenario: str, rule: str) -> str:
    """Where the locked threshold misses the sensitivity that it was locked for; empty where it keeps it.

    Args:
        comparison: That holds the result.
        backbone: Of the result.
        scenario: Of the result.
        rule: By which the threshold was locked; only `sensitivity_floor` promises one.
    """
    broken = []
    for promise in wording.broken_promises(comparison, rule):
        if (promise.backbone, promise.scenario) == (backbone, scenario):
            broken.append(promise)
    if not broken:
        return ""
    return wording.broken_words(broken, comparison.sensitivity_floor)


# --- what the files hold --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """What the comparison says of the result.

    Both are None where there is no comparison, or where it is of another run of this scenario.
    """

    comparison: Comparison | None = None
    row: ScenarioRow | None = None


def _compared(reports: Path, backbone: str, scenario: str, result_digest: str) -> _Compared:
    for name in ("evidence.json", "comparison.json"):
        path = reports / name
        if not path.is_file():
            continue
        comparison = Comparison.read(path)
        row = comparison.rows.get(backbone, {}).get(scenario)
        if row is None or row.result_digest != result_digest:
            return _Compared()
        return _Compared(comparison, row)
    return _Compared()


def _said(compared: _Compared, backbone: str, scenario: str, rule: str) -> list[str]:
    if compared.comparison is None:
        return []
    return said(compared.comparison, backbone, scenario, rule)


def _subgroups(row: ScenarioRow | None) -> str | None:
    """Name the columns by which the test images were divided into groups.

    None where nobody looked, as in the short form of a comparison.
    """
    if row is None or "subgroups" not in row.model_fields_set:
        return None
    columns = dict.fromkeys(group.column for group in row.subgroups)
    return ", ".join(columns) or "none: the data have no column for it"


def _model(folder: Path) -> ServedModel | None:
    path = folder / "model" / "model.json"
    return ServedModel.read(path) if path.is_file() else None


def _settings_by_round(choices: list[RoundChoice]) -> str:
    """What the search chose in the rounds of the first seed, the commonest first."""
    first_seed = choices[0].seed
    chosen = [_plain(choice.settings) for choice in choices if choice.seed == first_seed]
    parts = []
    for settings, rounds in Counter(chosen).most_common():
        parts.append(f"{settings} ({rounds} of {len(chosen)})" if rounds > 1 else f"{settings}")
    return "; ".join(parts)


class Source(NamedTuple):
    """The dataset's name, and what it takes for a patient, in words."""

    title: str
    reading: str


def source(dataset: str, group_by: str) -> Source:
    """What a dataset is called, and how its reading `group_by` tells who the patient is."""
    described = getattr(datasets.load_dataset(dataset), "CARD", None)
    if described is None:
        return Source(dataset, "")
    return Source(described.title, described.readings.get(group_by, ""))


def _left_out(quarantine: Path) -> dict[str, int]:
    """How many files were left out, by the kind of reason."""
    if not quarantine.is_file():
        return {}
    reasons = pd.read_csv(quarantine, dtype=str)["reason"]
    # What stands before " of " or ":" names the kind. What follows may name an image, so a patient.
    kinds = reasons.str.split(r":| of ", regex=True).str[0]
    return kinds.value_counts().sort_index().to_dict()


# --- metrics --------------------------------------------------------------------------------------


def _measured(
    summary: ScenarioSummary, row: ScenarioRow | None
) -> dict[str, dict[str, list[str | None]]]:
    """Tables of metrics: whose metrics -> metric -> a cell for each operating point."""
    tables = {"images": _cells(summary.metrics)}
    by_patient = row.patient.get("mean") if row else None
    if by_patient and by_patient.locked:
        title = f"patients, by the mean logit of their images ({by_patient.patients})"
        points = {point: by_patient.point(point) for point in POINTS}
        tables[title] = _cells(points)
    return tables


def _cells(table: MetricTable) -> dict[str, list[str | None]]:
    points = [table.get(point, {}) for point in POINTS]
    names = dict.fromkeys(itertools.chain.from_iterable(points))
    return {name: [_cell_at(point, name) for point in points] for name in names}


def _cell_at(point: Mapping[str, Interval], name: str) -> str | None:
    """A cell; empty where the metric has no such operating point."""
    return _cell(point[name]) if name in point else ""


# --- failures -------------------------------------------------------------------------------------


class WrongDecisions(NamedTuple):
    """Test images of the first repeat and seed that were decided wrongly at the locked threshold.

    Attributes:
        table: image_id, truth and decided (labels), prob (calibrated, of the class decided for)
            and confidence, the most confident first. Confidence is the distance of the logit from
            the threshold's, or for more than two classes from the true class's.
        tested: How many images were decided.
    """

    table: pd.DataFrame
    tested: int


def wrongly_decided(predictions: Predictions) -> WrongDecisions:
    """Find the mistakes among the test images of the first repeat and seed."""
    test = evidence.first_run(predictions)
    probs = test.probabilities(CALIBRATED)
    truth = test.table["label"].to_numpy()
    threshold = test.table["threshold"].to_numpy(dtype=np.float64)
    positive = test.positive_label
    decided = decide(probs, positive, threshold)
    every = np.arange(len(truth))
    logits = _logit(probs)
    if probs.shape[1] == 2:
        towards_decided = np.where(decided == positive, 1, -1)
        rival = towards_decided * _threshold_logit(threshold)
    else:
        rival = logits[every, truth]
    table = test.table[["image_id"]].assign(
        truth=truth,
        decided=decided,
        prob=probs[every, decided],
        confidence=logits[every, decided] - rival,
    )
    wrong = table[decided != truth]
    by_confidence = wrong.sort_values(["confidence", "image_id"], ascending=[False, True])
    return WrongDecisions(by_confidence, len(table))


def _logit(prob: np.ndarray) -> np.ndarray:
    of_class = np.clip(prob, metrics.EPSILON, 1)
    of_others = np.clip(1 - prob, metrics.EPSILON, 1)
    return np.log(of_class) - np.log(of_others)


def _threshold_logit(threshold: np.ndarray) -> np.ndarray:
    inside = np.clip(threshold, metrics.EPSILON, 1 - metrics.EPSILON)
    return np.log(inside / (1 - inside))


class _Confusion(NamedTuple):
    """How many images of one class were taken for another."""

    truth: str
    decided: str
    images: int


@dataclass(frozen=True)
class _Failures:
    """Wrong decisions of `tested` test images, and which class was taken for which."""

    wrong: int
    tested: int
    confusions: list[_Confusion]


def _failures(predictions: Predictions, classes: Sequence[str]) -> _Failures:
    wrong = wrongly_decided(predictions)
    numbers = Counter(zip(wrong.table["truth"], wrong.table["decided"]))
    confusions = []
    for (truth, decided), images in sorted(numbers.items()):
        confusions.append(_Confusion(classes[truth], classes[decided], images))
    return _Failures(len(wrong.table), wrong.tested, confusions)


# --- the template's functions ---------------------------------------------------------------------


def _environment(summary: ScenarioSummary) -> Environment:
    """Prepare the template: names stay text, and what does not exist is "not measured"."""
    floor = summary.settings["tune"]["sensitivity_floor"]
    environment = Environment(  # noqa: S701 - Markdown, which has its own way to make text harmless
        loader=PackageLoader("equipoise.compare", "."),
        undefined=ChainableUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["label"] = wording.labelled(floor, binary=len(summary.classes) == 2)
    environment.globals["plain"] = _plain
    environment.globals["number"] = _number
    environment.globals["cell"] = _cell
    environment.globals["whole"] = _whole
    environment.globals["finely"] = _finely
    return environment


def _safe(value: Any) -> str:
    """Make a value harmless: it stays text in Markdown, whatever a class or column is called."""
    if value is None or isinstance(value, Undefined):
        return _ABSENT
    text = html.escape(str(value).replace("\n", " "), quote=False)
    return text.replace("|", "\\|").replace("](", "] (")


def _number(value: float | Undefined | None) -> str | None:
    return None if isinstance(value, Undefined) else wording.fixed(value)


def _finely(delta: Interval) -> str | None:
    """A difference and its interval: those of remedies are small, so with four digits."""
    if delta.value is None:
        return None
    if delta.low is None or delta.high is None:
        return f"{wording.signed(delta.value, digits=4)}, without an interval"
    return wording.interval_text(delta, "+.4f")


def _whole(value: float | Undefined | None) -> str | None:
    if value is None or isinstance(value, Undefined):
        return None
    return f"{value:,.0f}"


def _cell(interval: Interval | None) -> str | None:
    """Estimate and interval; None where the estimate does not exist."""
    if interval is None or interval.value is None:
        return None
    return wording.interval_text(interval)


def _plain(values: Mapping[str, Any] | Calibration | Undefined) -> str | None:
    """Names and values in one line, without those that are empty."""
    if isinstance(values, Undefined):
        return None
    if isinstance(values, Calibration):
        values = values.as_dict()
    pairs = []
    for name, value in values.items():
        if value not in (None, ""):
            pairs.append(f"{name} {wording.setting_text(value)}")
    return ", ".join(pairs)
