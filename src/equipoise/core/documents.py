"""The JSON files of a study, one class for each: its fields are the file's keys, in their order.

A stage builds a document and writes it; every reader reads it here and uses its attributes. A
number that does not exist is null in the file and None when it is read back; until then it may be
NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from equipoise.core.errors import DataError
from equipoise.core.files import json_text, read_json, write_json

Kind = TypeVar("Kind", bound=BaseModel)

#: The scenario that does nothing, which the others are compared with.
BASELINE = "baseline"


class Part(BaseModel):
    """A part of a document; unknown keys are errors, and nothing changes once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the fields that were never set."""
        return self.model_dump(exclude_unset=True, by_alias=True)


class Document(Part):
    """A JSON file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            DataError: When it is missing, damaged, or holds something else.
        """
        return _checked(cls, path)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_json(path, self.as_dict())

    def text(self) -> str:
        """The JSON that `write` writes."""
        return json_text(self.as_dict())


def _checked(kind: type[Kind], path: Path) -> Kind:
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path} does not hold what this version of Equipoise writes: {where}: {first['msg']}. "
            f"Run the stage that writes it again."
        ) from error


# --- shared parts ---------------------------------------------------------------------------------


class ClassCount(Part):
    """How many images and patients of one class there are, and its share of the images (0..1)."""

    images: int
    patients: int
    image_share: float


class CheckAnswer(Part):
    """The answer of a coded check: passed, failed or not applicable; the short form has no name."""

    code: str
    name: str = ""
    answer: str
    detail: str


class Interval(Part):
    """An estimate with the ends of its interval."""

    value: float | None
    low: float | None
    high: float | None


class MeasuredMetric(Interval):
    """A metric on test rows.

    Attributes:
        interval: How the interval was made, in words.
        degenerate: Resamples in which the metric does not exist.
        wilson_low: Low end of Wilson's interval, where every row is another patient.
        wilson_high: High end of it.
        by_seed: One estimate per seed.
    """

    interval: str = ""
    degenerate: int = 0
    wilson_low: float | None = None
    wilson_high: float | None = None
    by_seed: list[float | None] = Field(default_factory=list)


class Difference(Interval):
    """A paired difference to the baseline.

    In the primary endpoint its interval is simultaneous: it holds for all rivals together.

    Attributes:
        p_adjusted: Chance of a difference this large somewhere among the rivals if all were equal.
        standard_error: Of the difference.
        detectable: The smallest difference that four studies of five of this size would find.
        patients_to_settle: Patients of the rarer class that would settle a difference of the margin.
    """

    p_adjusted: float | None = None
    standard_error: float | None = None
    detectable: float | None = None
    patients_to_settle: float | None = None


class RowCount(Part):
    """Test rows and the patients they are of."""

    test: int
    patients: int


class Calibration(Part):
    """A calibrator: slope and biases on the logit, or the reason why it is the identity."""

    slope: float
    biases: list[float]
    reason: str


# --- ingest, split, embed -------------------------------------------------------------------------


class FetchRecord(Document):
    """`data/raw/<dataset>.source.json`: the archive that `fetch` unpacked; later downloads must be the same."""

    address: str
    bytes: int
    sha256: str
    files: int
    file_bytes: int


class GreyLevels(Part):
    """How files of more than 8 bits became pictures.

    Attributes:
        white: Value that becomes white; null where the window holds for every file.
        window: Values that become black and white where numbers have no white of their own.
        files: Usable files of more than 8 bits.
        lines: The same in words, and what else is to be said of these files.
    """

    white: float | None
    window: list[float] | None
    files: int
    lines: list[str]


class IngestSummary(Document):
    """`data/manifest/<study>.json`: what was found in the raw folder.

    Attributes:
        raw: Digest of the names and sizes of its files, see `ingest/fingerprint.py`.
        code: Digest of the code that read them.
        grey_levels: How files of more than 8 bits became pictures; left out without such files.
        fewest_levels: By flag, how many of 256 levels the poorest picture has; left out where none is poor.
    """

    study: str
    dataset: str
    classes: list[str]
    positive_class: str
    patient_ids: bool
    source: str
    licence: str
    citation: str
    manifest: str
    raw: str
    code: str
    images: int
    patients: int
    pseudonymised: bool
    files_seen: int
    other_files_ignored: int
    left_out: dict[str, int]
    selection: str
    not_selected: int
    quarantined: int
    near_copies: int
    alike: int
    label_conflicts: int
    flagged: dict[str, int]
    by_class: dict[str, ClassCount]
    minority_classes: list[str]
    imbalance_ratio: float | None
    completeness: str
    grey_levels: GreyLevels | None = None
    fewest_levels: dict[str, int] = Field(default_factory=dict)


class RoundCounts(Part):
    """What one repeat and fold reached: images by part and class, patients by stratum and part."""

    repeat: int
    fold: int
    parts: dict[str, dict[str, ClassCount]]
    strata: dict[str, dict[str, int]]


class SplitSummary(Document):
    """`data/splits/<study>.json`: counts that a split reached, and the answers of its checks."""

    study: str
    splits: str
    manifest: str
    scheme: str
    group_by: str
    patients: int
    checks: list[CheckAnswer]
    rounds: list[RoundCounts]


class FeatureSummary(Document):
    """`meta.json` of a feature folder: the backbone, its weights, and how many passes were made.

    Features that were imported have no passes, and 0 for the size of the images. `views` says how many views were
    given with them; absent, there are as many as `embed.views` says.
    """

    backbone: str
    weights_digest: str
    image_size_px: int
    pipeline: str
    study: str = ""
    weights: str
    manifest: str
    settings: dict[str, Any]
    passes: int | None = None
    passes_of: dict[str, int] = Field(default_factory=dict)
    num_features: int | None = None
    views: int | None = None
    digest: str


# --- scenario -------------------------------------------------------------------------------------


class RoundSettings(Part):
    """The settings of one repeat, fold and seed: the strategy's, and `l2`."""

    repeat: int
    fold: int
    seed: int
    settings: dict[str, Any]


class SearchSummary(Part):
    """The scores behind a choice.

    Attributes:
        score: Inner score of the chosen trial; None where nothing was searched.
        best_score: Best inner score of the search; None where nothing was searched.
        published_score: Best inner score of the published settings; None where there is none.
        gain: By how much the best trial beats the published settings.
        gain_se: Paired standard error of the gain over patients; None where there was no gain.
        objective: Name of the metric that was searched for.
        identified: Whether the data tell the chosen settings from the published ones.
        switched_off: Whether the search chose settings at which the remedy does nothing.
        feasible: Whether the chosen trial meets the constraint.
        reason: Why nothing was searched; empty where it was.
        trials: Number of trials.
        failed_trials: How many of them failed.
        inner_folds: Folds behind each score.
        trial: Number of the chosen trial; absent where nothing was searched.
        pruned_trials: Trials stopped early; this and the rest absent unless they were trained.
        steps: Optimiser steps taken.
        steps_saved: Steps that pruned trials did not take.
        slice_images: Images of the slice that scores.
        slice_patients: Patients of it.
    """

    score: float | None
    best_score: float | None
    published_score: float | None
    gain: float
    gain_se: float | None
    objective: str
    identified: bool
    switched_off: bool = False
    feasible: bool
    reason: str
    trials: int
    failed_trials: int
    inner_folds: int
    trial: int | None = None
    pruned_trials: int | None = None
    steps: int | None = None
    steps_saved: int | None = None
    slice_images: int | None = None
    slice_patients: int | None = None


class RoundChoice(SearchSummary, RoundSettings):
    """What the search chose for one repeat, fold and seed: an entry of best.json, the settings first.

    Attributes:
        inner_draws: The inner score under resamples of the patients that scored it, the same for every scenario. It is
            kept where there is one test part, for the inner score chooses the winner there.
        train_counts: Train images per class before the plan.
        plan_counts: Draws per class after the plan.
        gradient_norm: Of the fitted head's objective.
        kept_step: The step whose weights fine-tuning kept.
        threshold: Locked operating point; None for more than two classes.
    """

    inner_draws: list[float | None] | None = None
    train_counts: list[int]
    plan_counts: list[int]
    gradient_norm: float
    kept_step: int | None = None
    calibrator: Calibration
    threshold: float | None


class Choices(RootModel[list[RoundChoice]]):
    """`best.json`: one entry per repeat, fold and seed."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file; raises DataError like every document."""
        return _checked(cls, path)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        write_json(path, self.as_list())

    def as_list(self) -> list[dict[str, Any]]:
        """Plain data, without the fields that were never set."""
        return [choice.as_dict() for choice in self.root]


#: Operating point (free, raw, locked) -> metric -> its number.
MetricTable = dict[str, dict[str, MeasuredMetric]]


class WithoutOverlap(Part):
    """Numbers on the test rows whose patient is not on the train side (official splits)."""

    rows: RowCount
    metrics: MetricTable | None


class ScenarioSummary(Document):
    """`metrics.json`: every number of one scenario on one backbone.

    Digests name what the numbers were made from.
    """

    study: str
    backbone: str
    scenario: str
    classes: list[str]
    positive_class: str
    mode: str
    weights: str
    passes: int | None
    majority_class: str
    minority_classes: list[str]
    test: dict[str, ClassCount]
    rows: RowCount
    inner_score: float | None
    metrics: MetricTable
    distribution: dict[str, dict[str, ClassCount]]
    non_overlapping: WithoutOverlap | None
    seed_has_effect: bool | None
    checks: list[CheckAnswer]
    digests: dict[str, str]
    settings: dict[str, Any]
    result_digest: str


class Timing(Document):
    """`data/cache/timings/<result digest>.json`: when a scenario ran on this machine, in milliseconds since 1970."""

    start_ms: int
    end_ms: int


class ServedModel(Document):
    """`model.json` beside the head: everything that a prediction needs besides weights.

    `num_features` is absent in files of before it was kept.
    """

    backbone: str
    weights: str
    weights_digest: str
    image_size_px: int
    pipeline: str
    num_features: int | None = None
    classes: list[str]
    positive_class: str
    calibrator: Calibration
    threshold: float | None
    evidence: str


# --- compare --------------------------------------------------------------------------------------


class PatientLevel(Part):
    """Numbers per patient under one rule (mean, max, vote).

    There are no metrics where a class has no patient.
    """

    patients: int
    left_out: int
    free: dict[str, MeasuredMetric] = Field(default_factory=dict)
    raw: dict[str, MeasuredMetric] = Field(default_factory=dict)
    locked: dict[str, MeasuredMetric] = Field(default_factory=dict)

    def point(self, name: str) -> dict[str, MeasuredMetric]:
        """Metrics at one operating point: free, raw or locked."""
        return {"free": self.free, "raw": self.raw, "locked": self.locked}[name]


class McNemar(Part):
    """Exact McNemar test of a scenario against the baseline, on units of one class decided differently.

    A unit is a patient or an image, as `units` says. The classes are tested apart: a threshold that moves finds more of
    one class at the cost of the other, and both together would say that the decisions got worse, or better.
    """

    units: str
    class_name: str
    both_right: int
    only_scenario_right: int
    only_baseline_right: int
    both_wrong: int
    p_value: float
    p_holm: float | None = None


class PerThousand(Part):
    """What a remedy changes for 1,000 patients or images.

    Attributes:
        positives_per_1000: How many of them are positive.
        positives_found: How many more positives are found than with the baseline; `found` in the file.
        false_alarms: How many more false alarms there are than with the baseline.
        sentence: The same in words.
    """

    positives_per_1000: float
    positives_found: Interval = Field(alias="found")
    false_alarms: Interval
    sentence: str


class Subgroup(Part):
    """Numbers of the test images with one value of one column of the dataset.

    Attributes:
        column: The dataset's own column.
        value: Its value for these images.
        few: Whether there are so few patients that the numbers are to be read with caution.
        against: The class of which all test images were added for the AUROC; empty where the subgroup has every class.
        auroc: Two classes: of the positive one; more: macro.
        patient_recognition_rate: At 0.5 on raw probabilities.
        sensitivity: At the locked threshold; two classes only.
        specificity: At the locked threshold; two classes only.
        accuracy: By the largest calibrated probability; more than two classes only.
    """

    column: str
    value: str
    images: int
    patients: int
    patients_per_class: dict[str, int]
    few: bool
    against: str
    auroc: MeasuredMetric | None = None
    patient_recognition_rate: MeasuredMetric | None = None
    sensitivity: MeasuredMetric | None = None
    specificity: MeasuredMetric | None = None
    accuracy: MeasuredMetric | None = None


class ScenarioRow(Part):
    """One scenario in a comparison; what the short form or the baseline lacks is never set.

    Attributes:
        verdict: baseline, better, worse, equivalent or inconclusive.
        reason: The verdict in a sentence, with its numbers.
        switched_off: Whether the search switched the remedy off in every round.
        delta: Differences to the baseline; only that of the primary endpoint is judged.
    """

    inner_score: float | None
    result_digest: str
    seed_has_effect: bool | None
    free: dict[str, MeasuredMetric]
    raw: dict[str, MeasuredMetric]
    locked: dict[str, MeasuredMetric]
    verdict: str
    reason: str = ""
    switched_off: bool = False
    delta: dict[str, Difference] = Field(default_factory=dict)
    non_overlapping: WithoutOverlap | None = None
    by_fold: dict[str, list[float | None]] = Field(default_factory=dict)
    patient: dict[str, PatientLevel] = Field(default_factory=dict)
    subgroups: list[Subgroup] = Field(default_factory=list)
    per_class: dict[str, MetricTable] = Field(default_factory=dict)
    mcnemar: dict[str, dict[str, McNemar]] = Field(default_factory=dict)
    per_1000: dict[str, dict[str, PerThousand]] = Field(default_factory=dict)

    def point(self, name: str) -> dict[str, MeasuredMetric]:
        """Metrics at one operating point: free, raw or locked."""
        return {"free": self.free, "raw": self.raw, "locked": self.locked}[name]


class PermutedLabels(Part):
    """AUROC after the labels were permuted between patients, with the interval of chance.

    Where nothing can be permuted there are no numbers, and `reason` says why.
    """

    auroc: float | None
    low: float | None
    high: float | None
    reason: str = ""


class Controls(Part):
    """Two models that should know nothing.

    Attributes:
        metadata_only: AUROC of a model that sees only the metadata of the files.
        permuted_labels: Backbone -> AUROC of a model that was trained on permuted labels.
    """

    metadata_only: MeasuredMetric
    permuted_labels: dict[str, PermutedLabels]


class Comparison(Document):
    """`evidence.json`, and `comparison.json`, its short form: a study's rows, winners and verdict.

    Attributes:
        rows: backbone -> scenario -> its row.
        primary: The endpoint behind every verdict, "point.metric".
        comparisons: Rivals that were compared to a baseline; their intervals hold together.
        winners: backbone -> scenario.
        challenger: The backbone whose winner is put forward.
        margin: The difference in the primary endpoint that nobody would care about.
        effective_patients: Patients of the rarer class, counted as many as equal ones they are worth.
        headline: What a reader must know first.
        verdict: All sentences, the headline first.
        baseline: The row that the others of its backbone are compared with.
    """

    study: str
    classes: list[str]
    positive_class: str
    majority_class: str
    minority_classes: list[str]
    weights: dict[str, str]
    mode: str
    test: dict[str, ClassCount]
    test_images: int
    test_patients: int
    test_digest: str
    primary: str
    sensitivity_floor: float
    alpha: float
    resamples: int
    units: str
    comparisons: int
    seeds: int
    folds: int
    controls: Controls
    checks: list[CheckAnswer]
    scheme: str
    group_by: str
    rows: dict[str, dict[str, ScenarioRow]]
    winners: dict[str, str]
    challenger: str
    registrable: bool
    margin: float
    effective_patients: float
    headline: str
    verdict: str
    notes: list[str]
    digest: str
    baseline: str = BASELINE


class ScenarioMetrics(Document):
    """`metrics/<backbone>/<scenario>.json`: what `dvc metrics` shows of a scenario; the baseline has no difference.

    Attributes:
        diff: Paired difference to the baseline in the primary endpoint.
        low: Low end of its interval, which holds for all rivals together.
        high: High end of it.
        auroc: On test.
        verdict: As of `ScenarioRow`.
    """

    diff: float | None = None
    low: float | None = None
    high: float | None = None
    auroc: float | None
    verdict: str


class StudyMetrics(Document):
    """`metrics.json`: what `dvc exp show` has a column for.

    Attributes:
        best: The scenario that would be put forward.
    """

    best: str


class JudgedRow(Part):
    """What `judge` says of one method; the baseline has no difference.

    Attributes:
        verdict: baseline, better, worse, equivalent or inconclusive.
        reason: The verdict in a sentence, with its numbers.
        value: Paired difference to the baseline in the primary endpoint.
        low: Low end of its interval, which holds for all methods together.
        high: High end of it.
        p_adjusted: As of `Difference`, and so are the next three.
        auroc: On test; of more than two classes the mean of each one against the rest.
        auroc_low: Low end of its interval.
        auroc_high: High end of it.
        metrics: Operating point (free, raw, locked) -> metric -> its number.
    """

    verdict: str
    reason: str
    value: float | None
    low: float | None
    high: float | None
    p_adjusted: float | None
    standard_error: float | None
    detectable: float | None
    patients_to_settle: float | None
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    metrics: MetricTable


class JudgedPredictions(Document):
    """The JSON of `judge`: what was compared, by which settings, and a row for each method.

    Attributes:
        rows: Name of the method -> its row.
        units: patients, or images where there are no patient ids.
    """

    headline: str
    baseline: str
    primary: str
    classes: list[str]
    positive_class: str
    units: str
    test_images: int
    test_patients: int
    folds: int
    effective_patients: float
    margin: float
    alpha: float
    resamples: int
    seed: int
    sensitivity_floor: float
    rows: dict[str, JudgedRow]
    notes: list[str]


class LeakageRow(Part):
    """One kind of split: numbers by "point.metric", what they are above the honest split's, the control."""

    metrics: dict[str, MeasuredMetric]
    inflation: dict[str, Difference]
    permuted_labels: PermutedLabels


class LeakageReport(Document):
    """`leakage.json`: what two leaks would add to the baseline's numbers.

    Attributes:
        l2: Penalty of every head.
        digests: Of the manifest and the features.
        rows: Kind of split -> its numbers.
    """

    study: str
    backbone: str
    weights: str
    images: int
    folds: int
    l2: float
    group_by: str
    patients: int
    sensitivity_floor: float
    digests: dict[str, str]
    rows: dict[str, LeakageRow]
