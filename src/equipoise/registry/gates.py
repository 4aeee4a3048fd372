"""The gates between challenger and champion: a code, a number, its bound and a verdict each.

What they judge travels with the version, in its run: the test predictions of the served model, and
for every image what that model was fitted on and what it says. So a champion stays comparable
whatever has become of the files.

To add a gate, write a function with `@gate` that answers for a `Case`, and name it in `GATES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from equipoise.core.config import Settings, Study
from equipoise.core.documents import MeasuredMetric
from equipoise.core.errors import DataError
from equipoise.core.shown import Shown, Table
from equipoise.core.text import first_line
from equipoise.evaluation import intervals
from equipoise.evaluation.intervals import Effect
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.patients import by_patient, of_every_class
from equipoise.registry import audit, checkout, models, verification
from equipoise.registry import evidence as evidence_
from equipoise.registry.decisions import GateRecord
from equipoise.registry.evidence import TOLERANCE, Evidence
from equipoise.registry.pairing import Paired, Unpaired, pair

#: Tag of a version: what each check answered, as "EQ001 none, EQ002 none".
CHECKS = "equipoise.checks"
#: Checks whose finding means that test was not independent of train.
LEAK_CHECKS = ("EQ001", "EQ002", "EQ004", "EQ008", "EQ-OFFICIAL")
_SENSITIVITY = Endpoint("locked", "sensitivity")
_SLOPE = Endpoint("locked", "calibration_slope")
#: The details of all gates must fit into one tag.
_DETAIL_CHARACTERS = 200

Word = Literal["passed", "failed", "not applicable"]


# --- what is asked, and what is answered ----------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What the gates are asked about: a version that is to become champion.

    Attributes:
        settings: For the bounds and the resamples.
        tags: Of the version.
        evidence: What the version carries; None where it cannot be read.
        pairing: The version against the champion.
        misplaced: Sentences about an alias that is not where the log left it.
        uncommitted: Files of code and params that differ from the commit now; None where there is
            no git.
        load: Loads the model of the version.
        differences: Compares the answers of a model with the evidence.
    """

    settings: Settings
    tags: Mapping[str, str]
    evidence: Evidence | None
    pairing: Paired | Unpaired
    misplaced: Sequence[str]
    uncommitted: Sequence[str] | None
    load: Callable[[], Any]
    differences: Callable[[Any, Evidence], evidence_.ServedDifference]

    @property
    def known_evidence(self) -> Evidence:
        """The evidence, for gates that are asked only where there is some."""
        if self.evidence is None:
            raise ValueError("this version carries no evidence")
        return self.evidence

    @property
    def is_decided_by_argmax(self) -> bool:
        """Whether the most probable of more than two classes decides, without a threshold."""
        return len(self.known_evidence.predictions.classes) > 2

    @cached_property
    def evaluation(self) -> intervals.Evaluation:
        """What the gates ask of the version's test rows, computed once for all of them."""
        floor = self.settings.tune.sensitivity_floor
        asked = [_SENSITIVITY, _SLOPE]
        predictions = self.known_evidence.predictions
        return intervals.evaluate(predictions, self.settings.compare, floor, asked)


class Answer(NamedTuple):
    """What a gate answers.

    Attributes:
        word: passed, failed or not applicable.
        number: What was held against the bound; None where nothing was measured.
        detail: What stands behind the number.
        asked: False where the question could not be asked, so that no bound is named.
        forceable: Whether a user may promote all the same.
    """

    word: Word
    number: float | None = None
    detail: str = ""
    asked: bool = True
    forceable: bool = True


_NO_HEALTHY_PATIENT = "nothing by patient: every one has an image of the positive class"

_WITHOUT_THRESHOLD = Answer(
    "not applicable",
    detail="more than two classes are decided by argmax, without a threshold",
    asked=False,
)


@dataclass(frozen=True)
class Verdict:
    """The answer of one gate, with its name and the bound that its number was held against."""

    code: str
    title: str
    bound: str
    answer: Answer

    @property
    def failed(self) -> bool:
        """Whether it stands in the way of the version."""
        return self.answer.word == "failed"

    @property
    def forceable(self) -> bool:
        """Whether a user may promote all the same."""
        return self.answer.forceable

    def as_record(self) -> GateRecord:
        """What a decision keeps of it; the detail is cut so that all gates fit into one tag."""
        return GateRecord(
            code=self.code,
            verdict=self.answer.word,
            number=self.answer.number,
            bound=self.bound,
            detail=self.answer.detail[:_DETAIL_CHARACTERS],
            forceable=self.answer.forceable,
            name=self.title,
        )

    def __str__(self) -> str:
        text = f"{self.code} {self.title}"
        if self.answer.number is not None:
            text += f" is {_shown(self.answer.number)} where {self.bound} is needed"
        if self.answer.detail:
            text += f" ({self.answer.detail})"
        return text


@dataclass(frozen=True)
class Gate:
    """One condition that a version must meet.

    Attributes:
        code: EQ-G and a number, in messages, the log and docs/promotion.md.
        title: The condition in a few words.
        bound: What the number is held against, in words.
        ask: Answers for a case.
        needs_evidence: Whether it can be asked only where the evidence was read.
        needs_threshold: Whether it is about the locked threshold, which two classes have. It needs
            evidence too.
    """

    code: str
    title: str
    bound: Callable[[Settings], str]
    ask: Callable[[Case], Answer]
    needs_evidence: bool
    needs_threshold: bool

    def judge(self, case: Case) -> Verdict:
        """Ask, and say what the answer was held against."""
        answer = self._answer(case)
        bound = self.bound(case.settings) if answer.asked else ""
        return Verdict(self.code, self.title, bound, answer)

    def _answer(self, case: Case) -> Answer:
        if self.needs_threshold and case.is_decided_by_argmax:
            return _WITHOUT_THRESHOLD
        return self.ask(case)


def gate(
    code: str,
    title: str,
    bound: Callable[[Settings], str],
    needs_evidence: bool = False,
    needs_threshold: bool = False,
) -> Callable[[Callable[[Case], Answer]], Gate]:
    """Make a gate of a function that answers for a case."""

    def declare(ask: Callable[[Case], Answer]) -> Gate:
        return Gate(code, title, bound, ask, needs_evidence, needs_threshold)

    return declare


def _word(passed: bool) -> Word:
    return "passed" if passed else "failed"


def _no_finding(settings: Settings) -> str:
    return "0"


#: Answers of a check for leakage that keep a version from service; of before, `finding`.
_LEAKING = ("failed", "finding", "no answer")


# --- the gates ------------------------------------------------------------------------------------


@gate("EQ-G1", "no leakage found", _no_finding)
def no_leakage(case: Case) -> Answer:
    """Every check for leakage was asked when the version was registered, and found nothing."""
    answers = _check_answers(case.tags)
    bad = []
    unasked = []
    for code, answer in answers.items():
        if answer in _LEAKING:
            bad.append(f"{code} {answer}")
        elif answer == "not applicable":
            unasked.append(code)
    detail = ", ".join(bad)
    if unasked and not bad:
        detail = f"not applicable: {', '.join(unasked)}"
    return Answer(_word(not bad), len(bad), detail)


def _check_answers(tags: Mapping[str, str]) -> dict[str, str]:
    """The answers of the checks for leakage; versions of before have a tag for each."""
    told = dict(text.partition(" ")[::2] for text in tags.get(CHECKS, "").split(", "))
    answers = {}
    for code in LEAK_CHECKS:
        answers[code] = told.get(code) or tags.get(f"equipoise.check.{code}", "no answer")
    return answers


@gate(
    "EQ-G2",
    "evidence comparable with the champion's",
    lambda settings: f">= {settings.promote.min_patients} per class",
)
def comparable(case: Case) -> Answer:
    """There are enough test patients that neither model was fitted on."""
    pairing = case.pairing
    if isinstance(pairing, Unpaired):
        return Answer(pairing.word, detail=pairing.why, asked=False)
    return Answer("passed", pairing.patients, f"patients; {pairing.how}")


@gate(
    "EQ-G3",
    "AUROC not inferior to the champion's",
    lambda settings: f"> {-settings.promote.non_inferiority_margin:g}",
)
def not_inferior(case: Case) -> Answer:
    """The low end of the difference in AUROC to the champion stays above minus the margin."""
    pairing = case.pairing
    if isinstance(pairing, Unpaired):
        why = "nothing to pair, see EQ-G2" if pairing.word == "failed" else pairing.why
        return Answer("not applicable", detail=why, asked=False)
    detail = (
        f"low end of the difference {pairing.difference:+.3f} [{pairing.low:+.3f}, {pairing.high:+.3f}], "
        f"{pairing.challenger_auroc:.3f} against version {pairing.champion}'s {pairing.champion_auroc:.3f}"
    )
    margin = case.settings.promote.non_inferiority_margin
    return Answer(_word(pairing.low > -margin), pairing.low, detail)


@gate(
    "EQ-G4",
    "sensitivity at the locked threshold",
    lambda settings: f">= {settings.promote.sensitivity_low_at_least:g}",
    needs_evidence=True,
    needs_threshold=True,
)
def sensitive(case: Case) -> Answer:
    """The low end of the sensitivity at the locked threshold reaches the bound."""
    cell = case.evaluation.interval(_SENSITIVITY)
    measured = _with_ends(cell)
    if measured is None:
        return _not_computed("the sensitivity", cell)
    enough = measured.low >= case.settings.promote.sensitivity_low_at_least
    detail = f"low end of {measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"
    return Answer(_word(enough), measured.low, detail)


@gate(
    "EQ-G5",
    "calibration slope",
    lambda settings: "{:g} to {:g}".format(*settings.promote.calibration_slope),
    needs_evidence=True,
    needs_threshold=True,
)
def calibrated(case: Case) -> Answer:
    """The slope of the calibrated probabilities is near 1: neither too sure nor too unsure."""
    cell = case.evaluation.interval(_SLOPE)
    measured = _with_ends(cell)
    if measured is None:
        return _not_computed("the slope", cell)
    lowest, highest = case.settings.promote.calibration_slope
    detail = f"[{measured.low:.3f}, {measured.high:.3f}]"
    return Answer(_word(lowest <= measured.value <= highest), measured.value, detail)


@gate(
    "EQ-G6",
    "test patients of the rarest class",
    lambda settings: f">= {settings.promote.min_patients}",
    needs_evidence=True,
)
def enough_patients(case: Case) -> Answer:
    """There are enough test patients of every class; the detail names the rarest."""
    predictions = case.known_evidence.predictions
    patients = predictions.table.groupby("label")["patient_id"].nunique()
    rarest = int(patients.idxmin())
    fewest = int(patients.min())
    enough = fewest >= case.settings.promote.min_patients
    return Answer(_word(enough), fewest, predictions.classes[rarest])


@gate(
    "EQ-G7",
    "loads and reproduces its own predictions",
    lambda settings: f"<= {TOLERANCE:.0e}",
)
def reproduces(case: Case) -> Answer:
    """The model loads and answers what its evidence says.

    A model that does not load cannot be forced: nothing could be served.
    """
    try:
        model = case.load()
        if case.evidence is None:
            return Answer("failed", detail="it loads, without evidence to reproduce")
        difference = case.differences(model, case.evidence)
    except Exception as error:  # whatever a damaged artifact raises
        why = f"it does not load: {first_line(error)}"
        return Answer("failed", detail=why, asked=False, forceable=False)
    close = difference.largest <= TOLERANCE
    return Answer(_word(close), difference.largest, f"on {difference.measured_on}")


@gate("EQ-G8", "code and params committed", _no_finding)
def committed(case: Case) -> Answer:
    """Code and params are those of a commit.

    This is asked of the time of registration, and of now, because the bounds are read now.
    """
    then = case.tags.get("equipoise.uncommitted")
    if case.uncommitted is None:
        return Answer("failed", detail="not known: this is no git checkout; `git init` and commit")
    if then is None or then == "no git":
        changed = ["all of it (when it was registered)"]
    else:
        changed = [f"{path} (when it was registered)" for path in then.split(", ") if path]
    renewal = f"`equipoise register --study {case.tags.get('equipoise.study', 'STUDY')}`"
    if case.uncommitted:
        changed += case.uncommitted
        return Answer("failed", len(changed), f"commit, then {renewal}: {', '.join(changed)}")
    if changed:
        why = f"{renewal} renews this from what is committed now: {', '.join(changed)}"
        return Answer("failed", len(changed), why)
    return Answer("passed", 0, f"commit {case.tags.get('equipoise.git_commit', 'none')[:8]}")


@gate("EQ-G9", "champion stands where the log left it", _no_finding)
def in_its_place(case: Case) -> Answer:
    """Nobody moved the alias behind the log's back."""
    count = len(case.misplaced)
    return Answer(_word(count == 0), count, " ".join(case.misplaced))


@gate(
    "EQ-G10",
    "sensitivity floor within reach on test",
    lambda settings: f">= {settings.tune.sensitivity_floor:g}",
    needs_evidence=True,
    needs_threshold=True,
)
def keeps_its_floor(case: Case) -> Answer:
    """The locked threshold keeps the promised sensitivity on test, by image and by patient.

    It is the threshold that is served, which the images locked; a patient is decided by the mean logit of his images.
    A miss is said with its numbers. It fails the version where the whole interval lies below the floor, so that
    chance does not explain it.
    """
    rule = case.settings.threshold.rule
    if rule != "sensitivity_floor":
        why = f"the threshold was locked by {rule}, which promises no sensitivity"
        return Answer("not applicable", detail=why, asked=False)
    floor = case.settings.tune.sensitivity_floor
    said = []
    missed = []
    highest = []
    sensitivities = _locked_sensitivities(case)
    for units, cell in sensitivities.items():
        measured = _with_ends(cell)
        if measured is None:
            return _not_computed(f"the sensitivity by {units}", cell)
        said.append(f"{units} {measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]")
        highest.append(measured.high)
        # As it is printed: a shortfall that no reader sees is none.
        if round(measured.value, 3) < floor:
            missed.append(units)
    reached = min(highest) >= floor
    if "patient" not in sensitivities and not case.evaluation.row_per_patient:
        said.append(_NO_HEALTHY_PATIENT)
    detail = ", ".join(said)
    if missed:
        chance = ", which chance explains" if reached else ""
        detail += f"; missed by {' and by '.join(missed)}{chance}"
    return Answer(_word(reached), min(highest), detail)


def _with_ends(cell: MeasuredMetric) -> Effect | None:
    """A number with both ends of its interval; None without them, as where a class has one patient."""
    if cell.value is None or cell.low is None or cell.high is None:
        return None
    measured = Effect(cell.value, cell.low, cell.high)
    return measured if np.isfinite(measured).all() else None


def _not_computed(what: str, cell: MeasuredMetric) -> Answer:
    """A number that does not exist stands in the way, but it was not held against the bound."""
    reason = "undefined without resampling"
    if cell.interval.startswith("none: "):
        reason = cell.interval.removeprefix("none: ")
    why = (
        f"{what} cannot be computed on these rows ({reason}), so it was not held against the bound"
    )
    return Answer("failed", detail=why, asked=False)


def _locked_sensitivities(case: Case) -> dict[str, MeasuredMetric]:
    """Sensitivity at the locked threshold by image, and by patient where these have several images and both classes.

    The page's numbers of patients have another threshold where there is a val part, locked again on its patients. Here
    only test rows are at hand, and the one that is served is asked about.
    """
    sensitivities = {"image": case.evaluation.interval(_SENSITIVITY)}
    if not case.evaluation.row_per_patient:
        settings = case.settings
        floor = settings.tune.sensitivity_floor
        people = by_patient(case.known_evidence.predictions, "mean", settings.threshold, floor)
        if of_every_class(people):
            evaluation = intervals.evaluate(people, settings.compare, floor, [_SENSITIVITY])
            sensitivities["patient"] = evaluation.interval(_SENSITIVITY)
    return sensitivities


#: In the order in which they are asked and shown.
GATES = (
    no_leakage,
    comparable,
    not_inferior,
    sensitive,
    calibrated,
    enough_patients,
    reproduces,
    committed,
    in_its_place,
    keeps_its_floor,
)


# --- the frame ------------------------------------------------------------------------------------


def judge(
    study: Study,
    store: MlflowClient,
    name: str,
    version: ModelVersion,
    current: ModelVersion | None,
) -> list[Verdict]:
    """Hold a version against every gate, the failed ones included: a refusal names all its reasons.

    Args:
        study: For bounds, resamples, code and raw images.
        store: The tracking store.
        name: Of the registered model.
        version: That is to become champion.
        current: The champion; None where there is none.
    """
    return ask_all(_case(study, store, name, version, current))


def ask_all(case: Case) -> list[Verdict]:
    """The verdicts of all gates, without those that need evidence where there is none."""
    asked = [gate for gate in GATES if case.evidence is not None or not gate.needs_evidence]
    return [gate.judge(case) for gate in asked]


def _case(
    study: Study,
    store: MlflowClient,
    name: str,
    version: ModelVersion,
    current: ModelVersion | None,
) -> Case:
    """Gather what the gates are asked about."""
    challenger: Evidence | None = None
    pairing: Paired | Unpaired
    try:
        challenger = evidence_.read(store, version)
        pairing = _against_champion(study, store, name, challenger, current)
    except DataError as error:
        pairing = Unpaired("failed", str(error))
    return Case(
        settings=study.settings,
        tags=version.tags,
        evidence=challenger,
        pairing=pairing,
        misplaced=verification.misplaced(store, name, audit.read(store, name)),
        uncommitted=checkout.uncommitted(study.root),
        load=lambda: models.load(f"models:/{name}/{version.version}", study.root),
        differences=lambda model, evidence: evidence_.differences(study, model, evidence),
    )


def _against_champion(
    study: Study,
    store: MlflowClient,
    name: str,
    challenger: Evidence,
    current: ModelVersion | None,
) -> Paired | Unpaired:
    if current is None:
        return Unpaired(
            "not applicable", "there is no champion: the first one is gated on absolutes"
        )
    if str(current.version) == challenger.version:
        return Unpaired("not applicable", "it is the champion itself")
    champion = evidence_.read(store, current)

    def rescore(rows: pd.DataFrame) -> pd.DataFrame:
        model = models.load(f"models:/{name}/{current.version}", study.root)
        return evidence_.rescore(study, model, rows)

    return pair(study.settings, challenger, champion, rescore)


# --- showing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged(Shown):
    """The verdicts of all gates, as a terminal shows them."""

    verdicts: Sequence[Verdict]

    def __rich__(self) -> Table:
        return table(self.verdicts)


def table(verdicts: Sequence[Verdict]) -> Table:
    """One line for each gate."""
    heads = ["gate", "", "number", "bound", "verdict", ""]
    rows = []
    for verdict in verdicts:
        answer = verdict.answer
        number = _shown(answer.number)
        row = [verdict.code, verdict.title, number, verdict.bound, answer.word, answer.detail]
        rows.append(row)
    return Table(rows, heads, wrapped=[1, 5], judged=4)


def _shown(number: float | None) -> str:
    """A number as a reader wants it: counts whole, tiny ones with their exponent."""
    if number is None:
        return ""
    if float(number).is_integer():
        return f"{number:.0f}"
    if abs(number) > 5e-4:
        return f"{number:.3f}"
    return f"{number:.1e}"
