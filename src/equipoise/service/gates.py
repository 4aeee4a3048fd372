"""The gates between challenger and champion: a code, a number, its bound and a verdict each.

What they judge travels with the version, in its run: the test predictions of the served model, and for every image what
that model was fitted on and what it says. So a champion stays comparable whatever has become of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from equipoise.core import environment
from equipoise.core.config import Study
from equipoise.core.errors import DataError, EquipoiseError
from equipoise.core.records import Predictions
from equipoise.core.text import first_line
from equipoise.evaluation import intervals
from equipoise.service import audit
from equipoise.service.evidence import TOLERANCE, Evidence, _rescored, differences, load, read

NAMES = {
    "EQ-G1": "no leakage found",
    "EQ-G2": "evidence comparable with the champion's",
    "EQ-G3": "AUROC not inferior to the champion's",
    "EQ-G4": "sensitivity at the locked threshold",
    "EQ-G5": "calibration slope",
    "EQ-G6": "test patients of the rarest class",
    "EQ-G7": "loads and reproduces its own predictions",
    "EQ-G8": "code and params committed",
    "EQ-G9": "champion stands where the log left it",
}


#: Checks whose finding means that test was not independent of train.
_LEAKS = ("EQ001", "EQ002", "EQ004", "EQ008", "EQ-OFFICIAL")


#: What the numbers depend on, beside the data.
_CODE = ("src", "params.yaml", "dvc.yaml", "requirements.lock", "conda.yaml", "pyproject.toml")


@dataclass(frozen=True)
class Gate:
    """One verdict, with the number behind it and the bound it was held against."""

    code: str
    verdict: Literal["passed", "failed", "not applicable"]
    number: float | None = None
    bound: str = ""
    detail: str = ""
    forceable: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the detail is cut so that all gates fit into one tag."""
        return {**asdict(self), "name": NAMES[self.code], "detail": self.detail[:200]}

    def __str__(self) -> str:
        shown = (
            f" is {_shown(self.number)} where {self.bound} is needed"
            if self.number is not None
            else ""
        )
        return f"{self.code} {NAMES[self.code]}{shown}{f' ({self.detail})' if self.detail else ''}"


def judge(
    study: Study,
    store: MlflowClient,
    name: str,
    version: ModelVersion,
    current: ModelVersion | None,
) -> list[Gate]:
    """Hold a version against every gate, the failed ones included: a refusal names all its reasons."""
    challenger: Evidence | None = None
    try:
        challenger = read(store, version)
        if current is None:
            paired = _unpaired(
                "not applicable", "there is no champion: the first one is gated on absolutes"
            )
        elif current.version == version.version:
            paired = _unpaired("not applicable", "it is the champion itself")
        else:
            uri = f"models:/{name}/{current.version}"
            paired = pair(
                study,
                challenger,
                read(store, current),
                lambda rows: _rescored(study, load(uri), rows),
            )
    except DataError as error:
        paired = _unpaired("failed", str(error))
    misplaced = audit.misplaced(store, name, audit.read(store, name))
    return [
        _leakage(version.tags),
        *paired,
        *(absolutes(study, challenger) if challenger else []),
        _loads(study, name, version, challenger),
        _committed(version.tags),
        Gate("EQ-G9", _verdict(not misplaced), len(misplaced), "0", " ".join(misplaced)),
    ]


def pair(
    study: Study,
    challenger: Evidence,
    champion: Evidence,
    rescore: Callable[[pd.DataFrame], pd.DataFrame],
) -> list[Gate]:
    """EQ-G2 and EQ-G3: the paired difference in AUROC on rows that neither model was fitted on.

    Args:
        study: For bounds and resamples.
        challenger: Whose test rows are taken.
        champion: Who is it now.
        rescore: Gives the champion's `prob_<class>` and `raw_<class>` by `image_id`, for rows of image_id and sha256.
    """
    margin = study.settings.promote.non_inferiority_margin
    try:
        mine, theirs, how = _shared_rows(study, challenger, champion, rescore)
        floor = study.settings.tune.sensitivity_floor
        both = [intervals.evaluate(item, study.settings.compare, floor) for item in (mine, theirs)]
    except EquipoiseError as error:
        return _unpaired("failed", str(error))
    draws = both[0].draws["free.auroc"] - both[1].draws["free.auroc"]
    ends = intervals.effect(draws, both[0].alpha, both[0].effective_patients)
    low = ends["low"]
    patients = mine.table["patient_id"].nunique()
    values = [float(item.draws["free.auroc"][0]) for item in both]
    return [
        Gate(
            "EQ-G2",
            "passed",
            patients,
            f">= {study.settings.promote.min_patients} per class",
            f"patients; {how}",
        ),
        Gate(
            *("EQ-G3", "passed" if low > -margin else "failed", low, f"> {-margin:g}"),
            f"low end of the difference {ends['value']:+.3f} [{low:+.3f}, {ends['high']:+.3f}], {values[0]:.3f} "
            f"against version {champion.version}'s {values[1]:.3f}",
        ),
    ]


def _unpaired(verdict: Literal["failed", "not applicable"], why: str) -> list[Gate]:
    second = "nothing to pair, see EQ-G2" if verdict == "failed" else why
    return [Gate("EQ-G2", verdict, detail=why), Gate("EQ-G3", "not applicable", detail=second)]


def _shared_rows(
    study: Study,
    challenger: Evidence,
    champion: Evidence,
    rescore: Callable[[pd.DataFrame], pd.DataFrame],
) -> tuple[Predictions, Predictions, str]:
    mine, theirs = challenger.predictions, champion.predictions
    key = "splits" if challenger.meta["several"] else "test"
    own, other = mine.meta | challenger.meta, theirs.meta | champion.meta
    for what in ("classes", "positive_class", "group_by", "pseudonym_key"):
        if own[what] != other[what]:
            raise DataError(
                f"they differ in {what}: {own[what]}, and {other[what]} of version {champion.version}"
            )
    alike = challenger.meta["several"] == champion.meta["several"]
    if alike and challenger.meta["digests"][key] == champion.meta["digests"][key]:
        return mine, theirs, "the same split" if key == "splits" else "the same test rows"
    table = mine.table.merge(challenger.images[["image_id", "sha256", "picture"]], on="image_id")
    fitted = champion.images[champion.images["fitted"]]
    seen = np.any(
        [table[column].isin(fitted[column]) for column in ("image_id", "patient_id", "picture")],
        axis=0,
    )
    left = table[~seen].reset_index(drop=True)
    patients = [
        left.loc[left["label"] == label, "patient_id"].nunique()
        for label in range(len(mine.classes))
    ]
    needed = study.settings.promote.min_patients
    if min(patients) < needed:
        counts = ", ".join(f"{name} {count}" for name, count in zip(mine.classes, patients))
        raise DataError(
            f"other test rows, and too few of them were never shown to version {champion.version}: patients {counts}, "
            f"{needed} per class are needed"
        )
    answers = rescore(left[["image_id", "sha256"]].drop_duplicates()).loc[left["image_id"]]
    columns = {
        f"{ours}_{name}": answers[f"{served}_{name}"].to_numpy()
        for name in mine.classes
        for ours, served in (("prob", "raw"), ("calibrated", "prob"))
    }
    scored = left.assign(**columns)
    how = f"test rows that version {champion.version} was never fitted on, scored again by it"
    return replace(mine, table=left), replace(mine, table=scored), how


def absolutes(study: Study, challenger: Evidence) -> list[Gate]:
    """EQ-G4 to EQ-G6: what a model must reach whoever the champion is."""
    bounds, test = study.settings.promote, challenger.predictions.table
    evaluation = intervals.evaluate(
        challenger.predictions, study.settings.compare, study.settings.tune.sensitivity_floor
    )
    found = []
    if len(challenger.predictions.classes) > 2:
        reason = "more than two classes are decided by argmax, without a threshold"
        found += [Gate(code, "not applicable", detail=reason) for code in ("EQ-G4", "EQ-G5")]
    else:
        cell, least = evaluation.interval("locked.sensitivity"), bounds.sensitivity_low_at_least
        text = f"low end of {cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
        found.append(
            Gate("EQ-G4", _verdict(cell["low"] >= least), cell["low"], f">= {least:g}", text)
        )
        cell, (low, high) = (
            evaluation.interval("locked.calibration_slope"),
            bounds.calibration_slope,
        )
        text = f"[{cell['low']:.3f}, {cell['high']:.3f}]"
        found.append(
            Gate(
                "EQ-G5",
                _verdict(low <= cell["value"] <= high),
                cell["value"],
                f"{low:g} to {high:g}",
                text,
            )
        )
    patients = test.groupby("label")["patient_id"].nunique()
    rarest = challenger.predictions.classes[int(patients.idxmin())]
    enough = _verdict(patients.min() >= bounds.min_patients)
    return [*found, Gate("EQ-G6", enough, int(patients.min()), f">= {bounds.min_patients}", rarest)]


def _verdict(passed: bool) -> Literal["passed", "failed"]:
    return "passed" if passed else "failed"


def _leakage(tags: Mapping[str, str]) -> Gate:
    answers = {code: tags.get(f"equipoise.check.{code}", "no answer") for code in _LEAKS}
    bad = [
        f"{code} {answer}" for code, answer in answers.items() if answer in ("finding", "no answer")
    ]
    unasked = [code for code, answer in answers.items() if answer == "not applicable"]
    text = ", ".join(bad) or (f"not applicable: {', '.join(unasked)}" if unasked else "")
    return Gate("EQ-G1", _verdict(not bad), len(bad), "0", text)


def _loads(study: Study, name: str, version: ModelVersion, evidence: Evidence | None) -> Gate:
    """EQ-G7, which cannot be forced where the model does not load: nothing could be served."""
    try:
        model = load(f"models:/{name}/{version.version}")
        if evidence is None:
            return Gate(
                "EQ-G7",
                "failed",
                None,
                f"<= {TOLERANCE:.0e}",
                "it loads, without evidence to reproduce",
            )
        difference, on = differences(study, model, evidence)
    except Exception as error:  # whatever a damaged artifact raises
        return Gate(
            "EQ-G7", "failed", detail=f"it does not load: {first_line(error)}", forceable=False
        )
    return Gate(
        "EQ-G7", _verdict(difference <= TOLERANCE), difference, f"<= {TOLERANCE:.0e}", f"on {on}"
    )


def uncommitted() -> list[str] | None:
    """Files of code and params that differ from the commit; None where there is no git."""
    changes = environment.git("status", "--porcelain", "--", *_CODE)
    return None if changes is None else [line[3:] for line in changes.splitlines()]


def _committed(tags: Mapping[str, str]) -> Gate:
    """Both when the version was registered and now: the bounds are of now."""
    then, now = tags.get("equipoise.uncommitted"), uncommitted()
    if then is None or now is None or then == "no git":
        return Gate(
            "EQ-G8",
            "failed",
            None,
            "0",
            "not known: this is no git checkout" if now is None else "not known",
        )
    changed = [f"{path} (when it was registered)" for path in then.split(", ") if path] + [
        f"{path}" for path in now
    ]
    commit = tags.get("equipoise.git_commit", "none")[:8]
    return Gate(
        "EQ-G8", _verdict(not changed), len(changed), "0", ", ".join(changed) or f"commit {commit}"
    )


def table_text(found: list[Gate]) -> str:
    """The verdicts as lines of text."""
    rows = [("gate", "", "number", "bound", "verdict", "")]
    rows += [
        (gate.code, NAMES[gate.code], _shown(gate.number), gate.bound, gate.verdict, gate.detail)
        for gate in found
    ]
    widths = [*(max(map(len, column)) for column in list(zip(*rows))[:-1]), 0]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    return (
        f"{number:.0f}"
        if float(number).is_integer()
        else f"{number:.3f}"
        if abs(number) > 5e-4
        else f"{number:.1e}"
    )
