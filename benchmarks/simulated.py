"""Studies whose truth is known, as the product's own predictions.

Scores of two normal laws, and heads on drawn features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import special

from equipoise.core.config import Compare, Study
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation import intervals, metrics
from equipoise.evaluation.sample import Sample, decide

FLOOR = 0.95
ALPHA = 0.05
MARGIN = 0.01
AUROC = metrics.Endpoint("free", "auroc")
SPECIFICITY = metrics.Endpoint("free", "specificity_at_sensitivity")
ALONE = (
    AUROC,
    metrics.Endpoint("raw", "sensitivity"),
    metrics.Endpoint("raw", "specificity"),
    SPECIFICITY,
    metrics.Endpoint("raw", "brier"),
)


def settings(resamples: int, seed: int) -> Compare:
    """The section of settings that a comparison reads."""
    return Compare(
        primary="auroc",
        margin=MARGIN,
        alpha=ALPHA,
        resamples=resamples,
        permutations=20,
        mistakes=None,
        seed=seed,
    )


def predictions(
    people: np.ndarray, labels: np.ndarray, prob: np.ndarray, folds: np.ndarray
) -> Predictions:
    """Test rows of one model; its probabilities count as calibrated ones too.

    Args:
        people: int (n,), the patient of each image.
        labels: int (n,), 0 or 1.
        prob: float (repeats, n), of class 1.
        folds: int (repeats, n).
    """
    frames = []
    for repeat, (of_repeat, fold) in enumerate(zip(prob, folds)):
        frame = pd.DataFrame(
            {
                "image_id": [f"i{image:06d}" for image in range(len(labels))],
                "patient_id": [f"p{person:06d}" for person in people],
                "repeat": repeat,
                "fold": fold,
                "seed": 0,
                "part": "test",
                "label": labels,
                "overlap": False,
                "threshold": 0.5,
            }
        )
        for kind in ("prob", "calibrated"):
            frame[f"{kind}_clear"] = 1 - of_repeat
            frame[f"{kind}_opacity"] = of_repeat
        frames.append(frame)
    meta = {"classes": ["clear", "opacity"], "positive_class": "opacity"}
    return Predictions(pd.concat(frames, ignore_index=True), meta)


def evaluated(
    rows: Predictions, resamples: int, seed: int, endpoints: Sequence[metrics.Endpoint]
) -> intervals.Evaluation:
    """The product's evaluation of these rows, with some metrics only."""
    return intervals.evaluate(rows, settings(resamples, seed), FLOOR, endpoints)


# --- scores of two normal laws --------------------------------------------------------------------

#: Correlation of the logits of two models on the same image, beyond its class.
SHARED = 0.8
BASE_SPECIFICITY = 0.67  # at the floor, where the AUROC is 0.93


def distance(specificity: float) -> float:
    """Standard deviations between the classes that give this specificity at the sensitivity floor."""
    return float(special.ndtri(specificity) + special.ndtri(FLOOR))


@dataclass(frozen=True)
class Scores:
    """One study: patient (n,) and label (n,) of each image, and each model's probabilities (models, n)."""

    people: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    def rows(self, model: int, units: str = "patients") -> Predictions:
        """Predictions of a model, all in one fold; of images as if each were a patient's only one."""
        people = self.people
        if units == "images":
            people = np.arange(len(people))
        prob = self.probabilities[model : model + 1]
        return predictions(people, self.labels, prob, np.zeros(prob.shape, dtype=int))


def simulate(
    rng: np.random.Generator,
    patients: int,
    correlation: float,
    distances: Sequence[float],
    sizes: str = "even",
) -> Scores:
    """Draw one study.

    Args:
        rng: Where chance comes from.
        patients: In each of the two classes.
        correlation: Of the logits within a patient, 0..1.
        distances: Between the classes, one for each model.
        sizes: "even" or "uneven" numbers of images.
    """
    mean = np.full(2 * patients, 2.0)
    if sizes == "uneven":
        mean = 2 * rng.gamma(0.5, 2, size=2 * patients)
    people = np.repeat(np.arange(2 * patients), 1 + rng.poisson(mean))
    labels = (people >= patients).astype(int)
    apart = np.array(distances)[:, None]

    def noise(size: int) -> np.ndarray:
        common = np.sqrt(SHARED) * rng.normal(size=size)
        own = np.sqrt(1 - SHARED) * rng.normal(size=(len(apart), size))
        return common + own

    of_patients = np.sqrt(correlation) * noise(2 * patients)[:, people]
    of_images = np.sqrt(1 - correlation) * noise(len(people))
    logits = apart * ((labels - 0.5) * apart + of_patients + of_images)
    return Scores(people, labels, special.expit(logits))


@cache
def truth(apart: float) -> dict[metrics.Endpoint, float]:
    """The values in 1,000,000 images at evenly spaced quantiles of the same law, by the same functions."""
    half = special.ndtri((np.arange(500_000) + 0.5) / 500_000)
    labels = np.repeat([0, 1], len(half))
    prob = special.expit(apart * np.concatenate([half - apart / 2, half + apart / 2]))
    probabilities = np.stack([1 - prob, prob], axis=1)
    sample = Sample(
        labels,
        probabilities,
        decide(probabilities, 1),
        1,
        np.ones((1, len(prob))),
        FLOOR,
    )
    values = {}
    for name in ALONE:
        function = metrics.REGISTRY[name.metric].function
        values[name] = float(function(sample)[0])
    return values


# --- heads on drawn features ----------------------------------------------------------------------

#: Features that every arm sees, and those of its own that say nothing.
_COMMON = 20
_NOISE = 10
#: Rivals that equal the baseline: the common features and other noise.
EQUAL = tuple(f"equal {number}" for number in range(1, 9))
UNDERSAMPLE = "undersample"
EXTRA = "one more feature"
RIVALS = (*EQUAL, UNDERSAMPLE, EXTRA)
BASELINE = "baseline"
FOLDS = 5

_NUM_FEATURES = _COMMON + (1 + len(EQUAL)) * _NOISE + 1
_PENALTY = 0.15
#: Of the positive patients so many are hard: their features differ less from those of the others.
_HARD_FRACTION = 0.3
_HARD_SHIFT = 0.55
_EASY_SHIFT = 1.2
_WITHIN_PATIENT = 0.3


@dataclass(frozen=True)
class Cell:
    """What kind of study is drawn.

    Attributes:
        positives: Expected positive patients; how many there are is drawn.
        negatives: Expected negative patients.
        repeats: Of 5 folds.
        extra: How far the one more feature tells the classes apart, in standard deviations.
    """

    positives: int
    negatives: int
    repeats: int
    extra: float


@dataclass(frozen=True)
class Trained:
    """Heads of all arms on one study.

    Attributes:
        people: int (n,).
        labels: int (n,).
        folds: int (repeats, n).
        probabilities: Arm -> float (repeats, n), of each image by the head that did not see its patient.
        truth: Arm -> the true AUROC of its heads, their mean.
    """

    people: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    probabilities: dict[str, np.ndarray]
    truth: dict[str, float]

    def rows(self, arm: str) -> Predictions:
        """Predictions of an arm."""
        return predictions(self.people, self.labels, self.probabilities[arm], self.folds)


def _columns(arm: str) -> np.ndarray:
    """Features that an arm sees."""
    block = EQUAL.index(arm) + 1 if arm in EQUAL else 0
    start = _COMMON + block * _NOISE
    columns = [*range(_COMMON), *range(start, start + _NOISE)]
    if arm == EXTRA:
        columns.append(_NUM_FEATURES - 1)
    return np.array(columns)


@cache
def _direction(extra: float) -> np.ndarray:
    """How the classes differ, float (num_features,)."""
    common = np.random.default_rng(5).normal(size=_COMMON)
    direction = np.zeros(_NUM_FEATURES)
    direction[:_COMMON] = 2.6 * common / np.linalg.norm(common)
    direction[-1] = extra
    return direction


def true_auroc(weights: np.ndarray, arm: str, extra: float) -> float:
    """AUROC of a head in the whole population, in closed form."""
    apart = weights @ _direction(extra)[_columns(arm)] / np.sqrt(2 * weights @ weights)
    hard = special.ndtr(_HARD_SHIFT * apart)
    easy = special.ndtr(_EASY_SHIFT * apart)
    return float(_HARD_FRACTION * hard + (1 - _HARD_FRACTION) * easy)


@dataclass(frozen=True)
class _Moments:
    """Number, sum and sum of squares of the features of one class; they add up over folds."""

    number: float
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> _Moments:
        return cls(len(features), features.sum(axis=0), features.T @ features)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.number + other.number, self.sums + other.sums, self.squares + other.squares
        )


def _head(moments: Sequence[_Moments], columns: np.ndarray) -> np.ndarray:
    """Regularised linear discriminant of two classes, float (num_columns,)."""
    means = [of_class.sums / of_class.number for of_class in moments]
    total = sum(of_class.number for of_class in moments)
    covariance = np.zeros((len(columns), len(columns)))
    chosen = np.ix_(columns, columns)
    for of_class, mean in zip(moments, means):
        spread = of_class.squares[chosen] / of_class.number
        spread = spread - np.outer(mean[columns], mean[columns])
        covariance += of_class.number / total * spread
    penalised = covariance + _PENALTY * np.eye(len(columns))
    return np.linalg.solve(penalised, (means[1] - means[0])[columns])


def train(rng: np.random.Generator, cell: Cell) -> Trained:
    """Draw a study and cross-validate all arms on it, in folds of whole patients."""
    patients = cell.positives + cell.negatives
    drawn = rng.binomial(patients, cell.positives / patients)
    positives = max(int(drawn), 2 * FOLDS)
    is_positive = np.arange(patients) < positives
    people = np.repeat(np.arange(patients), 1 + rng.poisson(rng.gamma(1.0, 1.0, size=patients)))
    labels = is_positive[people].astype(int)
    is_hard = (rng.uniform(size=patients) < _HARD_FRACTION)[people]
    of_patients = rng.normal(size=(patients, _NUM_FEATURES))[people]
    of_images = rng.normal(size=(len(people), _NUM_FEATURES))
    noise = np.sqrt(_WITHIN_PATIENT) * of_patients + np.sqrt(1 - _WITHIN_PATIENT) * of_images
    shift = labels * np.where(is_hard, _HARD_SHIFT, _EASY_SHIFT)
    features = noise + shift[:, None] * _direction(cell.extra)
    folds = np.stack([_dealt(rng, is_positive)[people] for _ in range(cell.repeats)])
    scores = {arm: np.empty(folds.shape) for arm in (BASELINE, *RIVALS)}
    truth = dict.fromkeys(scores, 0.0)
    for repeat, fold_of in enumerate(folds):
        for fold, heads in enumerate(_heads(rng, features, labels, fold_of)):
            inside = fold_of == fold
            for arm, weights in heads.items():
                scores[arm][repeat, inside] = features[inside][:, _columns(arm)] @ weights
                truth[arm] += true_auroc(weights, arm, cell.extra) / (FOLDS * cell.repeats)
    probabilities = {arm: special.expit(of_arm) for arm, of_arm in scores.items()}
    return Trained(people, labels, folds, probabilities, truth)


def _dealt(rng: np.random.Generator, is_positive: np.ndarray) -> np.ndarray:
    """Fold of each patient, the classes dealt apart."""
    folds = np.empty(len(is_positive), dtype=int)
    for of_class in (is_positive, ~is_positive):
        members = rng.permutation(np.flatnonzero(of_class))
        folds[members] = np.arange(len(members)) % FOLDS
    return folds


def _heads(
    rng: np.random.Generator, features: np.ndarray, labels: np.ndarray, fold_of: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Weights of every arm for every fold, trained on the other folds."""
    moments = []
    for fold in range(FOLDS):
        rows = fold_of == fold
        moments.append([_Moments.of(features[rows & (labels == label)]) for label in (0, 1)])
    fitted = []
    for fold in range(FOLDS):
        others = [moments[other] for other in range(FOLDS) if other != fold]
        known = [sum(of_class[1:], start=of_class[0]) for of_class in zip(*others)]
        heads = {arm: _head(known, _columns(arm)) for arm in (BASELINE, *EQUAL, EXTRA)}
        outside = np.flatnonzero(fold_of != fold)
        positives = outside[labels[outside] == 1]
        negatives = rng.permutation(outside[labels[outside] == 0])[: len(positives)]
        balanced = [_Moments.of(features[negatives]), _Moments.of(features[positives])]
        heads[UNDERSAMPLE] = _head(balanced, _columns(UNDERSAMPLE))
        fitted.append(heads)
    return fitted


@cache
def expected_gains(cell: Cell, studies: int = 100) -> dict[str, float]:
    """Rival -> by how much its heads are better than the baseline's over many studies like these."""
    once = Cell(cell.positives, cell.negatives, 1, cell.extra)
    sums = dict.fromkeys(RIVALS, 0.0)
    for study in range(studies):
        rng = np.random.default_rng([9, cell.positives, cell.negatives, study])
        truth = train(rng, once).truth
        for rival in (UNDERSAMPLE, EXTRA):
            sums[rival] += (truth[rival] - truth[BASELINE]) / studies
    return sums


# --- studies on files -----------------------------------------------------------------------------

#: Number of features, and how far they tell the classes apart, in standard deviations of an image.
WIDTH = 20
_APART = 2.4


def draw_features(study: Study, rng: np.random.Generator) -> None:
    """Put drawn features in the place of those of a fabricated study without views.

    So much of their variance is the patient's as for the heads on drawn features.
    """
    manifest = Manifest.read(study.manifest_path)
    patients, names = pd.factorize(manifest.table["patient_id"])
    labels = manifest.table["label"].to_numpy()
    of_patients = rng.normal(size=(len(names), WIDTH))[patients]
    of_images = rng.normal(size=(len(labels), WIDTH))
    noise = np.sqrt(_WITHIN_PATIENT) * of_patients + np.sqrt(1 - _WITHIN_PATIENT) * of_images
    features = noise + _centres()[labels]
    for backbone in study.backbones:
        store = study.features_path(backbone)
        np.save(store / "features.npy", features.astype(np.float32))


def new_images(rng: np.random.Generator, label: int, count: int = 20_000) -> np.ndarray:
    """Features of images of one class that no study holds, each of a patient of its own, (count, WIDTH)."""
    return rng.normal(size=(count, WIDTH)) + _centres()[label]


def _centres() -> np.ndarray:
    """Mean of the features of each class, float (2, WIDTH)."""
    direction = np.random.default_rng(8).normal(size=WIDTH)
    apart = _APART * direction / np.linalg.norm(direction)
    return np.stack([-apart / 2, apart / 2])
