"""The gates between challenger and champion: a code, a number, its bound and a verdict each.

What they judge travels with the version, in its run: the test predictions of the served model, and for every image what
that model was fitted on and what it says. So a champion stays comparable whatever has become of the files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from equipoise.core import images
from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.core.records import Manifest, Predictions, Splits, read_table, write_table
from equipoise.evaluation import intervals
from equipoise.ingest import stage as ingest
from equipoise.service import audit, tracking

#: Served probabilities may differ from the stored ones by this much: rounding, never another model.
TOLERANCE = 1e-5
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
_CHECKED_IMAGES = 16
_BATCH = 32


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
        shown = f" is {_shown(self.number)} where {self.bound} is needed" if self.number is not None else ""
        return f"{self.code} {NAMES[self.code]}{shown}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Evidence:
    """What a version carries: test predictions of the served model, and a row per image of its study.

    Attributes:
        version: Its number.
        predictions: Test rows of the served seed (k-fold: out of fold).
        images: image_id, patient_id, sha256, picture, fitted (in its train or val), and served_<class> where stored.
        meta: digests, several (folds), group_by, pseudonym_key, example (what it says of the input example).
    """

    version: str
    predictions: Predictions
    images: pd.DataFrame
    meta: dict[str, Any]


def load(uri: str) -> Any:
    """Load a registered model; a missing one is a ConfigError, a lost server a StoreError."""
    import mlflow

    tracking.client()
    try:
        return mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise tracking.store_error(error) or ConfigError(f"{uri} cannot be loaded: {first_line(error)}") from error


# --- evidence --------------------------------------------------------------------------------------------------------


def collect(study: Study, folder: Path, digests: Mapping[str, str], expected: pd.DataFrame) -> Evidence:
    """Gather the evidence of a result from its files; `expected` is what its served model must say, by image."""
    manifest, splits = Manifest.read(study.manifest_path), Splits.read(study.splits_path)
    predictions = Predictions.read(folder / "predictions.parquet").part("test")
    several, table = splits.folds > 1, predictions.table
    # Other seeds are other models; without folds so are other repeats, whose train rows may be tested here.
    served = (table["seed"] == study.settings.train.seeds[0]) & (several | (table["repeat"] == 0))
    predictions = replace(predictions, table=table[served].reset_index(drop=True))
    rows = splits.round(0, 0)
    table = rows[["image_id", "patient_id"]].merge(manifest.table[["image_id", "sha256", "picture"]], on="image_id")
    table["fitted"] = (rows["part"] != "test").to_numpy() | several  # folds are served by a refit on all rows
    answers = expected.rename(columns=lambda name: name.replace("calibrated_", "served_"))
    meta = {
        **{"digests": dict(digests), "several": several, "group_by": splits.meta["group_by"]},
        "pseudonym_key": manifest.meta.get("pseudonym_key"),
    }
    return Evidence("", predictions, table.merge(answers, on="image_id", how="left"), meta)


def write(evidence: Evidence, folder: Path) -> Path:
    """Write the artifact `evidence` into a folder."""
    evidence.predictions.write(folder / "test_predictions.parquet")
    write_table(folder / "images.parquet", evidence.images, evidence.meta)
    return folder


def read(store: MlflowClient, version: ModelVersion) -> Evidence:
    """Read the evidence of a version back from its run.

    Raises:
        DataError: When the run or its artifact is gone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = Path(store.download_artifacts(version.run_id, "evidence", scratch))
            predictions = Predictions.read(folder / "test_predictions.parquet")
            table, meta = read_table(folder / "images.parquet")
        except (MlflowException, OSError, DataError) as error:
            raise DataError(
                f"the evidence of version {version.version} cannot be read from run {version.run_id} "
                f"({first_line(error)})"
            ) from error
    return Evidence(str(version.version), predictions, table, meta)


def differences(study: Study, model: Any, evidence: Evidence) -> tuple[float, str]:
    """Largest difference between what a model serves and what is stored, and on what it was found.

    On a few images of the raw folder; on the input example where none of them is there.
    """
    columns = [name for name in evidence.images if name.startswith("served_")]
    stored = evidence.images.dropna(subset=columns)
    some = stored.iloc[np.linspace(0, len(stored) - 1, min(_CHECKED_IMAGES, len(stored))).astype(int)]
    found = {name: data for name, data in _files(study, some).items() if data is not None}
    if found:
        rows = some.set_index("image_id").loc[list(found), columns].to_numpy()
        answer, on = model.predict(pd.DataFrame({"image": list(found.values())})), f"{len(found)} images"
    elif "example" not in evidence.meta:
        raise DataError(f"None of the images is in {study.raw} as it was, so the saved model cannot be checked.")
    else:
        example = evidence.meta["example"]
        rows = np.array([[example[name.replace("served_", "prob_")] for name in columns]])
        answer, on = model.predict(model.input_example), "the input example; the raw images are not here"
    values = answer[[name.replace("served_", "prob_") for name in columns]].to_numpy(dtype=float)
    return float(np.abs(values - rows).max()), on


def _files(study: Study, rows: pd.DataFrame) -> dict[str, bytes | None]:
    """Bytes of images by id, None for those that are not in the raw folder as they were."""
    try:
        places = ingest.locate(study, Manifest.read(study.manifest_path))
    except EquipoiseError:
        places = {}
    found: dict[str, bytes | None] = {}
    for name, digest in rows[["image_id", "sha256"]].itertuples(index=False):
        try:
            data = images.read(study.raw, places.get(name, name))
        except OSError:
            data = b""
        found[name] = data if hashlib.sha256(data).hexdigest() == digest else None
    return found


# --- gates -----------------------------------------------------------------------------------------------------------


def judge(
    study: Study, store: MlflowClient, name: str, version: ModelVersion, current: ModelVersion | None
) -> list[Gate]:
    """Hold a version against every gate, the failed ones included: a refusal names all its reasons."""
    challenger: Evidence | None = None
    try:
        challenger = read(store, version)
        if current is None:
            paired = _unpaired("not applicable", "there is no champion: the first one is gated on absolutes")
        elif current.version == version.version:
            paired = _unpaired("not applicable", "it is the champion itself")
        else:
            uri = f"models:/{name}/{current.version}"
            paired = pair(study, challenger, read(store, current), lambda rows: _rescored(study, load(uri), rows))
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
        Gate("EQ-G2", "passed", patients, f">= {study.settings.promote.min_patients} per class", f"patients; {how}"),
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
    study: Study, challenger: Evidence, champion: Evidence, rescore: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[Predictions, Predictions, str]:
    mine, theirs = challenger.predictions, champion.predictions
    key = "splits" if challenger.meta["several"] else "test"
    own, other = mine.meta | challenger.meta, theirs.meta | champion.meta
    for what in ("classes", "positive_class", "group_by", "pseudonym_key"):
        if own[what] != other[what]:
            raise DataError(f"they differ in {what}: {own[what]}, and {other[what]} of version {champion.version}")
    alike = challenger.meta["several"] == champion.meta["several"]
    if alike and challenger.meta["digests"][key] == champion.meta["digests"][key]:
        return mine, theirs, "the same split" if key == "splits" else "the same test rows"
    table = mine.table.merge(challenger.images[["image_id", "sha256", "picture"]], on="image_id")
    fitted = champion.images[champion.images["fitted"]]
    seen = np.any([table[column].isin(fitted[column]) for column in ("image_id", "patient_id", "picture")], axis=0)
    left = table[~seen].reset_index(drop=True)
    patients = [left.loc[left["label"] == label, "patient_id"].nunique() for label in range(len(mine.classes))]
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


def _rescored(study: Study, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for start in range(0, len(rows), _BATCH):
        found = _files(study, rows.iloc[start : start + _BATCH])
        lacking = [name for name, data in found.items() if data is None]
        if lacking:
            raise DataError(f"other test rows, and image '{lacking[0]}' is not in {study.raw} to score it again")
        parts.append(model.predict(pd.DataFrame({"image": list(found.values())})).set_axis(list(found)))
    return pd.concat(parts)


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
        found.append(Gate("EQ-G4", _verdict(cell["low"] >= least), cell["low"], f">= {least:g}", text))
        cell, (low, high) = evaluation.interval("locked.calibration_slope"), bounds.calibration_slope
        text = f"[{cell['low']:.3f}, {cell['high']:.3f}]"
        found.append(Gate("EQ-G5", _verdict(low <= cell["value"] <= high), cell["value"], f"{low:g} to {high:g}", text))
    patients = test.groupby("label")["patient_id"].nunique()
    rarest = challenger.predictions.classes[int(patients.idxmin())]
    enough = _verdict(patients.min() >= bounds.min_patients)
    return [*found, Gate("EQ-G6", enough, int(patients.min()), f">= {bounds.min_patients}", rarest)]


def _verdict(passed: bool) -> Literal["passed", "failed"]:
    return "passed" if passed else "failed"


def _leakage(tags: Mapping[str, str]) -> Gate:
    answers = {code: tags.get(f"equipoise.check.{code}", "no answer") for code in _LEAKS}
    bad = [f"{code} {answer}" for code, answer in answers.items() if answer in ("finding", "no answer")]
    unasked = [code for code, answer in answers.items() if answer == "not applicable"]
    text = ", ".join(bad) or (f"not applicable: {', '.join(unasked)}" if unasked else "")
    return Gate("EQ-G1", _verdict(not bad), len(bad), "0", text)


def _loads(study: Study, name: str, version: ModelVersion, evidence: Evidence | None) -> Gate:
    """EQ-G7, which cannot be forced where the model does not load: nothing could be served."""
    try:
        model = load(f"models:/{name}/{version.version}")
        if evidence is None:
            return Gate("EQ-G7", "failed", None, f"<= {TOLERANCE:.0e}", "it loads, without evidence to reproduce")
        difference, on = differences(study, model, evidence)
    except Exception as error:  # whatever a damaged artifact raises
        return Gate("EQ-G7", "failed", detail=f"it does not load: {first_line(error)}", forceable=False)
    return Gate("EQ-G7", _verdict(difference <= TOLERANCE), difference, f"<= {TOLERANCE:.0e}", f"on {on}")


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def uncommitted() -> list[str] | None:
    """Files of code and params that differ from the commit; None where there is no git."""
    changes = tracking.git("status", "--porcelain", "--", *_CODE)
    return None if changes is None else [line[3:] for line in changes.splitlines()]


def _committed(tags: Mapping[str, str]) -> Gate:
    """Both when the version was registered and now: the bounds are of now."""
    then, now = tags.get("equipoise.uncommitted"), uncommitted()
    if then is None or now is None or then == "no git":
        return Gate("EQ-G8", "failed", None, "0", "not known: this is no git checkout" if now is None else "not known")
    changed = [f"{path} (when it was registered)" for path in then.split(", ") if path] + [f"{path}" for path in now]
    commit = tags.get("equipoise.git_commit", "none")[:8]
    return Gate("EQ-G8", _verdict(not changed), len(changed), "0", ", ".join(changed) or f"commit {commit}")


def table_text(found: list[Gate]) -> str:
    """The verdicts as lines of text."""
    rows = [("gate", "", "number", "bound", "verdict", "")]
    rows += [
        (gate.code, NAMES[gate.code], _shown(gate.number), gate.bound, gate.verdict, gate.detail) for gate in found
    ]
    widths = [*(max(map(len, column)) for column in list(zip(*rows))[:-1]), 0]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:.3f}" if abs(number) > 5e-4 else f"{number:.1e}"
