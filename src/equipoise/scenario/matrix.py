"""What a scenario reads: images, split and features of one study and backbone, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from equipoise.core.config import Study
from equipoise.core.errors import DataError, TrialFailed
from equipoise.core.records import Manifest, Splits
from equipoise.embed.store import FeatureStore
from equipoise.scenario.rows import Rows, Standardiser, blocks, scratch
from equipoise.strategies.base import Plan, TrainRows

Table = TypeVar("Table", bound=np.ndarray | Rows)


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
    """

    features: np.ndarray | Rows
    row: np.ndarray
    view: np.ndarray
    image_labels: np.ndarray
    patients: np.ndarray
    num_classes: int
    views: int
    positive: int

    @property
    def labels(self) -> np.ndarray:
        """Label of every row, int (num_rows,)."""
        return self.image_labels[self.row]

    @cached_property
    def standardiser(self) -> Standardiser:
        """Fitted on the plain images, once each."""
        return Standardiser.fit(
            Rows(self.features, np.arange(len(self.image_labels)), self.features.dtype)
        )

    def train_rows(self, seed: int, inside: np.ndarray | None = None) -> TrainRows:
        """What a strategy sees: all images, or those of an inner fold (int (num_inside,)) and nothing of the others."""
        inside = np.arange(len(self.image_labels)) if inside is None else inside
        return TrainRows(
            *(self.image_labels[inside], self.num_classes, self.views, seed, self.patients[inside]),
            make_features=lambda: self.standardiser.apply(self.features[inside], np.float32),
        )

    def draws(self, plan: Plan) -> np.ndarray:
        """How often a plan draws each row, times the weight of the draws, float (num_rows,); mixed draws apart."""
        place = np.full((len(self.image_labels), self.views + 1), -1)
        place[self.row, self.view] = np.arange(len(self.row))
        plain = plan.mix == 0
        drawn = place[plan.row[plain], plan.view[plain]]
        if (drawn < 0).any():
            raise TrialFailed(
                "The plan draws augmented views of an image that has none; set embed.views_of to all."
            )
        return np.bincount(drawn, weights=plan.weight[plain], minlength=len(self.row))

    def with_mixed(
        self, table: Table, draws: np.ndarray, mixed: Sequence[np.ndarray]
    ) -> tuple[Table | np.ndarray, np.ndarray, np.ndarray]:
        """Append the mixed rows of J plans, each different one once; without any everything is left as it is.

        Args:
            table: float (num_rows, width), the features or an affine image of them: points of a line stay on it.
            draws: float (num_rows, J), as of `draws`.
            mixed: J times float (num_mixed, 4), as of `mixed`.

        Returns:
            Rows (num_all, width), their labels int (num_all,) and draws float (num_all, J).
        """
        owner, every = (
            np.repeat(np.arange(len(mixed)), [len(rows) for rows in mixed]),
            np.concatenate(mixed),
        )
        if not len(every):
            return table, self.labels, draws
        points, place = np.unique(every[:, :3], axis=0, return_inverse=True)
        extra = np.zeros((len(points), len(mixed)))
        np.add.at(extra, (place.ravel(), owner), every[:, 3])
        row, partner = points[:, :2].astype(int).T
        whole = scratch((len(table) + len(points), table.shape[1]), table.dtype)
        for part in blocks(len(table)):
            whole[part] = table[part]
        appended = whole[len(table) :]
        for part in blocks(len(points)):
            first, mix = table[row[part]], points[part, 2:].astype(table.dtype)
            appended[part] = first + mix * (table[partner[part]] - first)
        labels = np.concatenate([self.labels, self.image_labels[row]])
        return whole, labels, np.concatenate([draws, extra])


def mixed(plan: Plan) -> np.ndarray:
    """The mixed draws of a plan, float (num_mixed, 4): row, partner, mix, weight."""
    return np.stack([plan.row, plan.partner, plan.mix, plan.weight], axis=1)[plan.mix > 0]


@dataclass(frozen=True)
class Inputs:
    """What a scenario reads: a study's images, split and features of one backbone, checked against each other."""

    study: Study
    backbone: str
    scenario: str
    manifest: Manifest
    splits: Splits
    store: FeatureStore

    @classmethod
    def read(cls, study: Study, backbone: str, scenario: str) -> Inputs:
        """Read the parents and refuse any that was made from another manifest."""
        manifest = Manifest.read(study.manifest_path)
        split = Splits.read(study.splits_path)
        store = FeatureStore.open(study.features_path(backbone))
        for name, parent, verb in (
            (study.splits_path, split.meta["manifest"], "split"),
            (study.features_path(backbone), store.meta["manifest"], "embed"),
        ):
            if parent != manifest.digest:
                raise DataError(
                    f"{name} was made from another manifest than {study.manifest_path}. Run {verb} again."
                )
        return cls(study, backbone, scenario, manifest, split, store)

    @property
    def positive(self) -> int:
        """Index of the positive class."""
        return self.manifest.classes.index(self.manifest.positive_class)

    def labels(self, images: np.ndarray) -> np.ndarray:
        """Labels of images, positions in the manifest, int (num_images,)."""
        return self.manifest.table["label"].to_numpy()[images]

    def train_matrix(self, images: np.ndarray, patients: np.ndarray) -> TrainMatrix:
        """Features of train images, int positions in the manifest, and of the augmented views there are of them."""
        table = self.manifest.table.iloc[images]
        digests = table["sha256"].to_numpy()
        views = self.study.settings.embed.views
        has_views = np.array([views > 0 and (digest, 1) in self.store.row_of for digest in digests])
        viewed = np.flatnonzero(has_views)
        row = np.concatenate([np.arange(len(images)), np.tile(viewed, views)])
        view = np.concatenate(
            [np.zeros(len(images), dtype=int), np.repeat(np.arange(1, views + 1), len(viewed))]
        )
        return TrainMatrix(
            features=Rows(
                self.store.matrix, self.store.rows(digests[row], view), self.store.matrix.dtype
            ),
            row=row,
            view=view,
            image_labels=table["label"].to_numpy(),
            patients=patients,
            num_classes=len(self.manifest.classes),
            views=views,
            positive=self.positive,
        )

    def rows(self, images: np.ndarray) -> Rows:
        """Plain features of images, positions in the manifest, float32 (num_images, num_features), still on disk."""
        digests = self.manifest.table["sha256"].to_numpy()[images]
        chosen = self.store.rows(digests, np.zeros(len(images), dtype=int))
        return Rows(self.store.matrix, chosen, self.store.matrix.dtype)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What `rows` names, read."""
        return self.rows(images)[:]
