"""Features, labels and patients -> predictions of one head for each remedy, cross-validated as in a study."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from equipoise.api import arrays, pictures
from equipoise.api import folds as folds_
from equipoise.api.arrays import Labels
from equipoise.api.folds import Folds
from equipoise.core import config
from equipoise.core.config import Study
from equipoise.core.documents import Choices, FeatureSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest, Predictions
from equipoise.embed import imported
from equipoise.embed.store import FeatureStore
from equipoise.scenario import stage
from equipoise.scenario.matrix import Inputs
from equipoise.strategies import base as strategies

#: What the features are called where there is no backbone.
_FEATURES = "features"
#: The remedies that are fitted when none are named: those that need nothing but labels.
_STRATEGIES = ("baseline", "oversample", "undersample", "class_weight")


def fit_heads(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    patients: npt.ArrayLike | None,
    strategies: Sequence[str] | Mapping[str, Mapping[str, Any]] = _STRATEGIES,
    *,
    views: npt.ArrayLike | None = None,
    images: npt.ArrayLike | None = None,
    positive: Any = None,
    folds: int | Folds | None = None,
    repeats: int | None = None,
    trials: int | None = None,
    seeds: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> FittedHeads:
    """Fit one linear head for each remedy and fold, with the same search for all, and predict those who were left out.

    It is what the scenario stage of a study does, by the same code: settings and penalty are searched
    in inner folds of whole patients, calibrator and threshold come from inner out-of-fold scores.

    Args:
        features: float (num_rows, num_features), of any network.
        labels: (num_rows,), names or numbers.
        patients: (num_rows,), who each row is of; None where every row is of somebody else.
        strategies: Names of scenarios, or name -> settings that are fixed instead of searched.
        views: float (K, num_rows, num_features), augmented views of the rows, for augment and
            weighted_augment.
        images: (num_rows,), a name for each row; rows are numbered when left out.
        positive: The positive class of two, where the labels are neither 0 and 1 nor truth values.
        folds: Number of folds, default 5, or what `split` gave for these rows.
        repeats: Times that all patients are dealt anew, default 5.
        trials: Of each search, default 20.
        seeds: Of plans and searches, default [0].
        settings: Any other setting of params.yaml by its dotted name, for example
            `{"tune.sensitivity_floor": 0.9}`.
        workers: Processes; -1 for every core. It changes no number.

    Returns:
        Predictions by name, which `compare` takes.

    Raises:
        DataError: For arrays that do not fit together, numbers that are not finite, a single class,
            and too few patients of a class.
        ConfigError: For a strategy or setting that does not exist, with the nearest name.
        TrialFailed: When nothing can be learned, as from features that are all the same.
    """
    known = Labels.of(labels, positive)
    owners = arrays.patients_of(patients, len(known))
    table = arrays.features_of(features, len(known))
    viewed = _views_of(views, table)
    fixed = _fixed(strategies)
    overrides = _overrides(folds, repeats, trials, seeds, settings)
    overrides["embed.views"] = len(viewed)
    manifest = arrays.manifest_of(known, owners, images)
    with tempfile.TemporaryDirectory(prefix="equipoise-") as root:
        study = config.study_of_arrays(
            arrays.NOWHERE, _FEATURES, Path(root), overrides, fixed, workers
        )
        divided = _divided(folds, manifest, study)
        store = _store(manifest, table, viewed)
        predictions = {}
        choices = {}
        for name in fixed:
            inputs = Inputs(study, _FEATURES, name, manifest, divided.splits, store)
            predictions[name], choices[name] = stage.predict_in_memory(inputs)
    return FittedHeads(predictions, choices, divided)


@dataclass(frozen=True, eq=False, repr=False)
class FittedHeads:
    """What heads predicted for patients whom they never saw.

    Attributes:
        predictions: Name of the remedy -> its predictions on test (and val, where there is one).
        choices: Name of the remedy -> what its search chose in every round.
        folds: The division into folds.
    """

    predictions: Mapping[str, Predictions]
    choices: Mapping[str, Choices]
    folds: Folds

    @property
    def table(self) -> pd.DataFrame:
        """All predictions as one table with a column `method`, as `compare` and `judge` read it."""
        tables = []
        for name, predictions in self.predictions.items():
            table = predictions.table.copy()
            table.insert(0, "method", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    @property
    def chosen(self) -> pd.DataFrame:
        """One row per remedy and round: inner score, whether the data identify the settings, and the settings."""
        rows = []
        for name, choices in self.choices.items():
            for choice in choices.root:
                row = {
                    "method": name,
                    "repeat": choice.repeat,
                    "fold": choice.fold,
                    "seed": choice.seed,
                    "score": choice.score,
                    "identified": choice.identified,
                    "switched_off": choice.switched_off,
                }
                row.update(choice.settings)
                rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self._scores().to_string(index=False)}"

    def _repr_html_(self) -> str:
        scores = self._scores()
        return pictures.html_table(list(scores), scores.to_numpy().tolist(), self._title())

    def _title(self) -> str:
        first = next(iter(self.predictions.values()))
        rows = first.table
        return (
            f"{len(rows)} predictions of {rows['patient_id'].nunique()} patients by each of {len(self.predictions)} "
            f"remedies, in {len(self.folds)} rounds; what the searches chose:"
        )

    def _scores(self) -> pd.DataFrame:
        rows = []
        for name, choices in self.choices.items():
            scores = [choice.score for choice in choices.root if choice.score is not None]
            mean = f"{np.mean(scores):.4f}" if scores else "-"
            identified = sum(choice.identified for choice in choices.root)
            rows.append([name, mean, f"{identified} of {len(choices.root)}"])
        return pd.DataFrame(
            rows, columns=["remedy", "mean inner score", "rounds with settings identified"]
        )


# --- what the stage reads, made of arrays ---------------------------------------------------------


def _fixed(
    names: Sequence[str] | Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Name of each remedy -> its fixed settings; every name is known.

    Raises:
        ConfigError: For an unknown one, and where there is none.
    """
    if isinstance(names, str):
        names = [names]
    fixed = {name: dict(names[name]) if isinstance(names, Mapping) else {} for name in names}
    if not fixed:
        raise ConfigError(
            "No strategy is named. Name some, for example ['baseline', 'oversample']."
        )
    for name in fixed:
        strategies.load_strategy(name)
    return fixed


def _overrides(
    folds: int | Folds | None,
    repeats: int | None,
    trials: int | None,
    seeds: Sequence[int] | None,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The settings that were given, by their dotted names."""
    if isinstance(folds, Folds):
        if repeats is not None:
            raise ConfigError(
                "folds says already how often patients are dealt: leave repeats out, or give a number of folds."
            )
        division = folds.splits.meta["settings"]["split"]
        given = {f"split.{name}": value for name, value in division.items()}
    else:
        given = {"split.folds": folds, "split.repeats": repeats}
    given["tune.trials"] = trials
    given["train.seeds"] = None if seeds is None else list(seeds)
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides.update(settings or {})
    return overrides


def _divided(folds: int | Folds | None, manifest: Manifest, study: Study) -> Folds:
    """The given folds where they are of these rows, or new ones."""
    if not isinstance(folds, Folds):
        return folds_.divided(manifest, study.settings.split)
    if folds.manifest.digest != manifest.digest:
        raise DataError(
            "The folds were made of other rows: images, labels or patients differ. Give `split` the same rows in the "
            "same order, or a number of folds here."
        )
    return folds


def _views_of(views: npt.ArrayLike | None, table: np.ndarray) -> list[np.ndarray]:
    """The features of each view of all rows."""
    if views is None:
        return []
    given = np.asarray(views)
    if given.ndim != 3 or given.shape[1:] != table.shape:
        raise DataError(
            f"The views have the shape {given.shape}; (number of views, {table.shape[0]}, {table.shape[1]}) is "
            "expected, for each view what features has."
        )
    return [arrays.features_of(view, len(table), "views").astype(table.dtype) for view in given]


def _store(manifest: Manifest, table: np.ndarray, views: Sequence[np.ndarray]) -> FeatureStore:
    """Features and views, found by the names of the rows."""
    names = manifest.table["sha256"]
    row_of = {}
    for view in range(len(views) + 1):
        for row, name in enumerate(names):
            row_of[name, view] = view * len(names) + row
    matrix = np.concatenate([table, *views])
    summary = FeatureSummary(
        backbone=_FEATURES,
        weights=imported.WEIGHTS,
        weights_digest=imported.WEIGHTS,
        image_size_px=0,
        pipeline=imported.WEIGHTS,
        study=arrays.NOWHERE,
        manifest=manifest.digest,
        settings={},
        num_features=table.shape[1],
        views=len(views),
        digest=digest_of(
            [manifest.digest, list(matrix.shape), float(matrix.sum(dtype=np.float64))]
        ),
    )
    return FeatureStore(matrix, row_of, summary)
