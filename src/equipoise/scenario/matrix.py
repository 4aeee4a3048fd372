"""What a scenario reads: images, split and features, and the rows that a plan draws from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from equipoise.core.config import Study
from equipoise.core.errors import DataError, TrialFailed
from equipoise.core.records import Manifest, Splits
from equipoise.embed.store import FeatureStore
from equipoise.scenario.heads.kept import Kept
from equipoise.scenario.heads.rows import Rows, Standardiser, blocks, scratch
from equipoise.strategies.base import Objective, Plan, TrainRows

#: Features, as an array or still on disk.
Table = TypeVar("Table", bound=np.ndarray | Rows)

#: Rows are copied without those that nothing weighs when at most this share is left.
_WORTH_A_COPY_FRACTION = 0.9


class WeightedRows(NamedTuple, Generic[Table]):
    """The rows that J heads are fitted to.

    Attributes:
        features: (num_all, width): the rows of the matrix, then those that plans mix.
        labels: int (num_all,).
        weights: float (num_all, J), what each row weighs for each head; 0 leaves it out.
    """

    features: Table
    labels: np.ndarray
    weights: np.ndarray

    def in_use(self, scratch_folder: Path | None = None) -> WeightedRows[Any]:
        """Without the rows that weigh 0 for every head, where these are worth a copy of the others.

        Args:
            scratch_folder: Where the copy lies when it is large.
        """
        used = np.flatnonzero(self.weights.any(axis=1))
        if len(used) > _WORTH_A_COPY_FRACTION * len(self.weights):
            return self
        _, width = self.features.shape
        features = scratch((len(used), width), self.features.dtype, scratch_folder)
        for block in blocks(len(used)):
            features[block] = self.features[used[block]]
        return WeightedRows(features, self.labels[used], self.weights[used])


@dataclass(frozen=True)
class TrainMatrix:
    """Features of the train rows of one round: the plain images first, then their augmented views.

    Attributes:
        features: float32 (num_rows, num_features), raw; read from disk where they are used.
        row: int (num_rows,), the train image a row is of; row i < num_images is the plain image i.
        view: int (num_rows,), 0 for the plain image.
        image_labels: int (num_images,).
        patients: (num_images,), patient of each image.
        num_classes: C.
        views: K, augmented views of each minority image.
        positive: Index of the positive class.
        scratch_folder: Where copies of many rows lie, see `rows.scratch`.
        rotations: Where rotations of the rows are kept; None keeps none.
    """

    features: np.ndarray | Rows
    row: np.ndarray
    view: np.ndarray
    image_labels: np.ndarray
    patients: np.ndarray
    num_classes: int
    views: int
    positive: int
    scratch_folder: Path | None = None
    rotations: Kept | None = None

    @property
    def labels(self) -> np.ndarray:
        """Label of every row, int (num_rows,)."""
        return self.image_labels[self.row]

    @cached_property
    def standardiser(self) -> Standardiser:
        """Fitted on the plain images, once each."""
        plain = np.arange(len(self.image_labels))
        return Standardiser.fit(Rows(self.features, plain, self.features.dtype))

    @cached_property
    def row_of(self) -> np.ndarray:
        """Row of each view of each image, int (num_images, K + 1); -1 where there is none."""
        rows = np.full((len(self.image_labels), self.views + 1), -1)
        rows[self.row, self.view] = np.arange(len(self.row))
        return rows

    def train_rows(self, seed: int, inside: np.ndarray | None = None) -> TrainRows:
        """What a strategy sees of these images.

        Args:
            seed: Seed of every draw.
            inside: int (num_inside,), the images of an inner fold, of which alone the strategy
                learns; all of them when left out.
        """
        if inside is None:
            inside = np.arange(len(self.image_labels))
        return TrainRows(
            labels=self.image_labels[inside],
            num_classes=self.num_classes,
            views=self.views,
            seed=seed,
            patients=self.patients[inside],
            make_features=lambda: self.standardiser.apply(self.features[inside], np.float32),
        )

    def without_views(self) -> TrainMatrix:
        """The plain images alone; where they stand and how they are standardised stays the same."""
        plain = np.arange(len(self.image_labels))
        features = Rows(self.features, plain, self.features.dtype)
        return replace(self, features=features, row=plain, view=np.zeros_like(plain))

    def require_views(self, plan: Plan) -> None:
        """Refuse a plan that draws augmented views which are not there.

        Raises:
            TrialFailed: When it does.
        """
        plain = plan.mix == 0
        drawn = self.row_of[plan.row[plain], plan.view[plain]]
        if (drawn < 0).any():
            raise TrialFailed(
                "The plan draws augmented views of an image that has none; "
                "set embed.views_of to all."
            )

    def draws(self, plan: Plan) -> np.ndarray:
        """How often a plan draws each row, times the weight of the draws, float (num_rows,).

        Mixed draws are left out: their rows are not in the matrix.

        Raises:
            TrialFailed: When the plan draws augmented views which are not there.
        """
        self.require_views(plan)
        plain = plan.mix == 0
        drawn = self.row_of[plan.row[plain], plan.view[plain]]
        return np.bincount(drawn, weights=plan.weight[plain], minlength=len(self.row))

    def weighted(
        self,
        plans: Sequence[Plan],
        objectives: Sequence[Objective],
        features: Table,
    ) -> WeightedRows[Table | np.ndarray]:
        """The rows that J heads are fitted to: draws of the row times the weight of its class.

        Args:
            plans: J plans.
            objectives: J objectives; of them the weights are read.
            features: (num_rows, width), the features or an affine image of them: mixed rows lie on
                the same lines in both.

        Raises:
            TrialFailed: When a plan draws augmented views which are not there.
        """
        draws = np.empty((len(self.row), len(plans)))
        for head, plan in enumerate(plans):
            draws[:, head] = self.draws(plan)
        mixed_draws = [mixed(plan) for plan in plans]
        table, labels, weights = self.with_mixed(features, draws, mixed_draws)
        class_weights = np.stack([objective.weights for objective in objectives], axis=1)
        for block in blocks(len(labels)):
            of_class = labels[block]
            weights[block] *= class_weights[of_class]
        return WeightedRows(table, labels, weights)

    def with_mixed(
        self,
        features: Table,
        draws: np.ndarray,
        mixed_draws: Sequence[np.ndarray],
    ) -> WeightedRows[Table | np.ndarray]:
        """Append the mixed rows of J plans, each different one once.

        Without mixed rows the features and the draws are returned as they are, uncopied.

        Args:
            features: (num_rows, width), the features or an affine image of them.
            draws: float (num_rows, J), as of `draws`.
            mixed_draws: J times float (num_mixed, 4), as of `mixed`.

        Returns:
            All rows, with the draws as their weights.
        """
        plan_of = np.repeat(np.arange(len(mixed_draws)), [len(rows) for rows in mixed_draws])
        every_draw = np.concatenate(mixed_draws)
        if not len(every_draw):
            return WeightedRows(features, self.labels, draws)
        points, point_of = np.unique(every_draw[:, :3], axis=0, return_inverse=True)
        extra = np.zeros((len(points), len(mixed_draws)))
        np.add.at(extra, (point_of.ravel(), plan_of), every_draw[:, 3])
        row = points[:, 0].astype(int)
        labels = np.concatenate([self.labels, self.image_labels[row]])
        return WeightedRows(
            features=_appended(features, points, self.scratch_folder),
            labels=labels,
            weights=np.concatenate([draws, extra]),
        )


def mixed(plan: Plan) -> np.ndarray:
    """The mixed draws of a plan, float (num_mixed, 4): row, partner, mix, weight."""
    draws = np.stack([plan.row, plan.partner, plan.mix, plan.weight], axis=1)
    return draws[plan.mix > 0]


def _appended(
    features: np.ndarray | Rows, points: np.ndarray, scratch_folder: Path | None
) -> np.ndarray:
    """Features with mixed rows below them.

    Args:
        features: (num_rows, width).
        points: float (num_points, 3): row, partner, mix.
        scratch_folder: Where the table lies when it is large.
    """
    row = points[:, 0].astype(int)
    partner = points[:, 1].astype(int)
    num_rows, width = features.shape
    shape = (num_rows + len(points), width)
    table = scratch(shape, features.dtype, scratch_folder)
    for block in blocks(num_rows):
        table[block] = features[block]
    appended = table[num_rows:]
    for block in blocks(len(points)):
        first = features[row[block]]
        second = features[partner[block]]
        mix = points[block, 2:].astype(features.dtype)
        way = second - first
        appended[block] = first + mix * way
    return table


@dataclass(frozen=True)
class Inputs:
    """What a scenario reads, checked against each other: a study's images, split and features.

    Attributes:
        study: Name and settings.
        backbone: Whose features are read.
        scenario: Name of the strategy.
        manifest: One row per image.
        splits: The part of each image in each round.
        store: The features.
    """

    study: Study
    backbone: str
    scenario: str
    manifest: Manifest
    splits: Splits
    store: FeatureStore

    @classmethod
    def read(cls, study: Study, backbone: str, scenario: str) -> Inputs:
        """Read what the stages before this one wrote.

        Raises:
            DataError: When the split or the features were made from another manifest.
        """
        manifest = Manifest.read(study.manifest_path)
        splits = Splits.read(study.splits_path)
        store = FeatureStore.open(study.features_path(backbone))
        parents = {
            study.splits_path: (splits.meta["manifest"], "split"),
            study.features_path(backbone): (store.meta["manifest"], "embed"),
        }
        for path, (parent, verb) in parents.items():
            if parent != manifest.digest:
                raise DataError(
                    f"{path} was made from another manifest than {study.manifest_path}. "
                    f"Run {verb} again."
                )
        return cls(study, backbone, scenario, manifest, splits, store)

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return self.manifest.classes.index(self.manifest.positive_class)

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Labels of images, positions in the manifest, int (num_images,)."""
        return self.manifest.table["label"].to_numpy()[images]

    def train_matrix(self, images: np.ndarray, patients: np.ndarray) -> TrainMatrix:
        """Features of train images and of the augmented views there are of them.

        Args:
            images: int (num_images,), positions in the manifest.
            patients: (num_images,), patient of each.
        """
        given = self.store.summary.views
        views = self.study.settings.embed.views if given is None else given
        digests = self._digests(images)
        has_views = [views > 0 and (digest, 1) in self.store.row_of for digest in digests]
        viewed = np.flatnonzero(has_views)
        plain = np.arange(len(images))
        row = np.concatenate([plain, np.tile(viewed, views)])
        view_numbers = np.repeat(np.arange(1, views + 1), len(viewed))
        view = np.concatenate([np.zeros_like(plain), view_numbers])
        stored = self.store.rows(digests[row], view)
        return TrainMatrix(
            features=Rows(self.store.matrix, stored, self.store.matrix.dtype),
            row=row,
            view=view,
            image_labels=self.labels(images),
            patients=patients,
            num_classes=len(self.manifest.classes),
            views=views,
            positive=self.positive,
            scratch_folder=self.study.cache_path,
            rotations=Kept(self.study.cache_path / "rotations"),
        )

    def rows(self, images: np.ndarray) -> Rows:
        """Plain features of images, float32 (num_images, num_features), still on disk.

        Args:
            images: int (num_images,), positions in the manifest.
        """
        plain = np.zeros(len(images), dtype=int)
        stored = self.store.rows(self._digests(images), plain)
        return Rows(self.store.matrix, stored, self.store.matrix.dtype)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What `rows` names, read."""
        return self.rows(images)[:]

    def _digests(self, images: np.ndarray) -> Any:
        return self.manifest.table["sha256"].to_numpy()[images]
