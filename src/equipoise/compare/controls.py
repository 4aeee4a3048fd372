"""What a comparison must survive: whether files' metadata tell the class, and whether shuffled labels are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from equipoise.compare.wording import number
from equipoise.core.config import Compare
from equipoise.core.documents import Controls, MeasuredMetric, PermutedLabels
from equipoise.core.records import CALIBRATED, RAW, Manifest, Predictions, Splits, probability_table
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint, softmax
from equipoise.scenario.heads import head
from equipoise.scenario.heads.rows import Standardiser
from equipoise.scenario.matrix import Inputs
from equipoise.split.checks import Check, Verdict
from equipoise.strategies.base import Objective

#: The control of permuted labels is a finding outside this central share of what chance gives.
_CENTRAL = 0.99

_AUROC = Endpoint("free", "auroc")

_NO_CONTROL = "no permutation of the labels leaves every class on both sides"


class Sides(NamedTuple):
    """Positions in the manifest of the train and of the test images of one round, int arrays."""

    train: np.ndarray
    test: np.ndarray


def sides(manifest: Manifest, rows: pd.DataFrame) -> Sides:
    """The sides of one round, of its rows in the split."""
    images = manifest.table["image_id"]
    position_of = pd.Series(np.arange(len(images)), index=images)
    in_train = rows["part"] == "train"
    in_test = rows["part"] == "test"
    train = position_of.loc[rows.loc[in_train, "image_id"]]
    test = position_of.loc[rows.loc[in_test, "image_id"]]
    return Sides(train.to_numpy(), test.to_numpy())


# --- the coded checks -----------------------------------------------------------------------------


def metadata_check(controls: Controls) -> Check:
    """EQ007: the model of files' metadata is a finding when all of its interval lies above 0.5."""
    measured = controls.metadata_only
    name = "classes told apart by metadata alone"
    if not _exist(measured.value, measured.low, measured.high):
        return Check(
            code="EQ007",
            name=name,
            answer="not applicable",
            detail="the test patients are too few for an interval of the metadata's AUROC",
        )
    return Check(
        code="EQ007",
        name=name,
        answer="failed" if number(measured.low) > 0.5 else "passed",
        detail=(
            f"width, height, bytes and grey level alone reach AUROC {measured.value:.3f} "
            f"[{measured.low:.3f}, {measured.high:.3f}]"
        ),
    )


def permuted_labels_check(controls: Controls) -> Check:
    """EQ008: heads of permuted labels are a finding when those of any backbone leave what chance gives.

    Where nothing can be permuted there is nothing to answer.
    """
    answers: list[Verdict] = []
    details = []
    for backbone, row in controls.permuted_labels.items():
        answers.append(_learned(row))
        details.append(f"{backbone}: {control_text(row)}")
    answer: Verdict = "not applicable"
    for possible in ("failed", "passed"):
        if possible in answers:
            answer = possible
            break
    return Check(
        code="EQ008",
        name="permuted labels are learned",
        answer=answer,
        detail="; ".join(details),
    )


def control_text(row: PermutedLabels) -> str:
    """The control of permuted labels in words."""
    if not _exist(row.auroc, row.low, row.high):
        return row.reason or _NO_CONTROL
    return f"AUROC {row.auroc:.3f}, chance gives {row.low:.3f} to {row.high:.3f}"


def _learned(row: PermutedLabels) -> Verdict:
    if not _exist(row.auroc, row.low, row.high):
        return "not applicable"
    is_chance = number(row.low) <= number(row.auroc) <= number(row.high)
    return "passed" if is_chance else "failed"


def _exist(*values: float | None) -> bool:
    """Whether all of them are numbers."""
    return all(np.isfinite(number(value)) for value in values)


CHECKS = (metadata_check, permuted_labels_check)


def checks_of(controls: Controls) -> list[Check]:
    """The answers of both checks, in the order of their codes."""
    return [check(controls) for check in CHECKS]


# --- metadata alone -------------------------------------------------------------------------------


# Products this small gain nothing from several threads, which wait for each other where the machine is busy.
@threadpool_limits.wrap(limits=1, user_api="blas")
def metadata_only(
    manifest: Manifest, splits: Splits, settings: Compare, sensitivity_floor: float
) -> MeasuredMetric:
    """AUROC on test of a model that sees width, height, bytes and mean grey level of the files, and no picture.

    A quadratic logistic regression (C = 1) on the logarithms of the sizes and the grey level, fitted on train. Where
    classes came from different devices or were stored differently it does well, and so may a network, for that
    reason alone.
    """
    table = manifest.table
    sizes = table[["width_px", "height_px", "bytes"]]
    log_sizes = np.log(sizes.to_numpy(dtype=np.float64))
    grey = table["grey_mean"].to_numpy(dtype=np.float64)
    values = np.column_stack([log_sizes, grey])
    labels = table["label"].to_numpy()
    frames = []
    for repeat, fold in splits.rounds():
        rows = splits.round(repeat, fold)
        train, test = sides(manifest, rows)
        terms = _quadratic(values, train)
        model = _logistic_regression(terms[train], labels[train], len(manifest.classes))
        prob = softmax(model.logits(terms[test]))
        frame = prediction_rows(manifest, rows, test, prob, repeat, fold)
        frames.append(frame)
    evaluation = evaluated(manifest, frames, settings, sensitivity_floor, [_AUROC])
    return evaluation.interval(_AUROC)


def _quadratic(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Each value in units of its spread over train, each square and each product of two.

    What is the same for all train images, but for rounding, is 0.

    Args:
        values: float (n, k).
        train: int (num_train,), rows.

    Returns:
        float (n, k + k (k + 1) / 2).
    """
    centre = values[train].mean(axis=0)
    spread = values[train].std(axis=0)
    varies = spread > np.finfo(np.float32).eps * np.abs(centre)
    standardised = np.where(varies, values - centre, 0.0) / np.where(varies, spread, 1.0)
    first, second = np.triu_indices(values.shape[1])
    products = standardised[:, first] * standardised[:, second]
    return np.column_stack([standardised, products])


def _logistic_regression(terms: np.ndarray, labels: np.ndarray, num_classes: int) -> head.Head:
    """A head on terms as they are, float (n, num_terms); its penalty is that of scikit-learn's C = 1."""
    num_rows, num_terms = terms.shape
    return head.fit(
        terms,
        labels,
        draws=np.ones(num_rows),
        objective=Objective.neutral(num_classes),
        l2=1 / num_rows,
        standardiser=Standardiser(np.arange(num_terms), np.zeros(num_terms), np.ones(num_terms)),
    )


def prediction_rows(
    manifest: Manifest,
    rows: pd.DataFrame,
    test: np.ndarray,
    prob: np.ndarray,
    repeat: int,
    fold: int,
) -> pd.DataFrame:
    """Rows of a Predictions table for test images; nothing is calibrated and the threshold is 0.5.

    Args:
        manifest: Names and labels of the images.
        rows: Of the split, which knows the patients.
        test: int (num_test,), positions in the manifest.
        prob: float (num_test, C).
        repeat: Of the round.
        fold: Of the round.
    """
    images = manifest.table.iloc[test]
    patient_of = rows.set_index("image_id")["patient_id"]
    patients = patient_of.loc[images["image_id"]]
    table = pd.DataFrame(
        {
            "image_id": images["image_id"].to_numpy(),
            "patient_id": patients.to_numpy(),
            "repeat": repeat,
            "fold": fold,
            "seed": 0,
            "part": "test",
            "label": images["label"].to_numpy(),
            "overlap": False,
            "threshold": 0.5,
        }
    )
    raw = probability_table(RAW, prob, manifest.classes)
    calibrated = probability_table(CALIBRATED, prob, manifest.classes)
    return pd.concat([table, raw, calibrated], axis=1)


def evaluated(
    manifest: Manifest,
    frames: Sequence[pd.DataFrame],
    settings: Compare,
    sensitivity_floor: float,
    endpoints: Sequence[Endpoint],
) -> intervals.Evaluation:
    """Those metrics, with intervals, of the rows that `prediction_rows` made, one frame per round."""
    table = pd.concat(frames, ignore_index=True)
    meta = {
        "classes": list(manifest.classes),
        "positive_class": manifest.positive_class,
    }
    predictions = Predictions(table, meta)
    return intervals.evaluate(predictions, settings, sensitivity_floor, endpoints)


# --- permuted labels ------------------------------------------------------------------------------


@threadpool_limits.wrap(limits=1, user_api="blas")
def permuted_labels(
    inputs: Inputs, rounds: Sequence[Sides], l2: float, permutations: int, seed: int
) -> PermutedLabels:
    """AUROC on test of heads trained on labels permuted between patients, against the permuted labels.

    Under an honest split it is 0.5 up to chance. It is above when test is not independent of train, for then the
    pictures' resemblance is enough. Patients are those of the dataset's first reading, the conservative one, so a
    grouping that is too fine shows here. The heads are ridge regressions on class indicators: their closed form
    makes 200 of them one product. What chance gives comes from permuting the labels of the test patients once more.

    Args:
        inputs: Manifest and features.
        rounds: Train and test images of each round.
        l2: Penalty on features of unit spread, as in `head`.
        permutations: How often labels are permuted.
        seed: Of the permutations.

    Returns:
        auroc: mean over rounds and permutations; low, high: the central 99 % of what chance gives. None, with the
        reason, where nothing can be permuted.
    """
    patient_ids = inputs.manifest.table["patient_id"]
    patient_of_image, patients = pd.factorize(patient_ids, sort=True)
    labels = _main_labels(inputs, patient_of_image, len(patients))
    missing = sorted(set(range(len(inputs.manifest.classes))) - set(labels.tolist()))
    if missing:
        return _without_control(
            f"the labels cannot be permuted between patients, for of no patient most images are "
            f"{inputs.manifest.classes[missing[0]]}"
        )
    rng = np.random.default_rng([seed, 8])
    permuted = [rng.permutation(labels) for _ in range(permutations)]
    shuffled = np.stack(permuted)
    observed, chance = [], []
    for division in rounds:
        learned = _learned_by(inputs, division, shuffled, patient_of_image, l2, rng)
        # A test part so small that no permutation gives it every class tells nothing.
        if _exist(learned.auroc, *learned.by_chance):
            observed.append(learned.auroc)
            chance.append(learned.by_chance)
    if not observed:
        return _without_control(_NO_CONTROL)
    over_rounds = np.mean(chance, axis=0)
    tail = (1 - _CENTRAL) / 2
    low, high = np.quantile(over_rounds, [tail, (1 + _CENTRAL) / 2])
    return PermutedLabels(
        auroc=float(np.mean(observed)),
        low=float(low),
        high=float(high),
    )


class _Learned(NamedTuple):
    """Mean AUROC of one round over permutations, and what chance gives instead, several times."""

    auroc: float
    by_chance: list[float]


def _learned_by(
    inputs: Inputs,
    round_: Sides,
    shuffled: np.ndarray,
    patient_of_image: np.ndarray,
    l2: float,
    rng: np.random.Generator,
) -> _Learned:
    """Train on the permuted labels of one round and test on them; `shuffled` is int (permutations, num_patients)."""
    patient_of_test = patient_of_image[round_.test]
    train_labels = shuffled[:, patient_of_image[round_.train]]
    scores = ridge_scores(inputs, round_.train, round_.test, train_labels, l2)
    ranks = rankdata(scores, axis=2)
    auroc = _mean_of_numbers(aurocs(ranks, shuffled[:, patient_of_test]))
    by_chance = _by_chance(ranks, shuffled, patient_of_test, len(shuffled), rng)
    return _Learned(auroc, by_chance)


def _without_control(reason: str) -> PermutedLabels:
    return PermutedLabels(auroc=None, low=None, high=None, reason=reason)


def _mean_of_numbers(values: np.ndarray) -> float:
    """Mean of those that are numbers; NaN where none is."""
    exists = np.isfinite(values)
    return float(values[exists].mean()) if exists.any() else np.nan


def _by_chance(
    ranks: np.ndarray,
    shuffled: np.ndarray,
    patient_of_row: np.ndarray,
    permutations: int,
    rng: np.random.Generator,
) -> list[float]:
    """Mean AUROC of the same scores when the labels of the test patients are permuted again, several times."""
    patients, place = np.unique(patient_of_row, return_inverse=True)
    means = []
    for _ in range(permutations):
        again = rng.permuted(shuffled[:, patients], axis=1)
        values = aurocs(ranks, again[:, place])
        means.append(_mean_of_numbers(values))
    return means


def _main_labels(inputs: Inputs, patient_of_image: np.ndarray, num_patients: int) -> np.ndarray:
    """The class that most images of a patient show, int (num_patients,)."""
    shape = num_patients, len(inputs.manifest.classes)
    images_of_class = np.zeros(shape, dtype=int)
    every = np.arange(len(patient_of_image))
    labels = inputs.labels(every)
    np.add.at(images_of_class, (patient_of_image, labels), 1)
    return images_of_class.argmax(axis=1)


def ridge_scores(
    inputs: Inputs,
    train: np.ndarray,
    test: np.ndarray,
    labels: np.ndarray,
    l2: float,
) -> np.ndarray:
    """Scores of ridge regressions on class indicators, one for each permutation and class.

    Args:
        inputs: Features of the images.
        train: int (num_train,), positions in the manifest.
        test: int (num_test,), positions in the manifest.
        labels: int (permutations, num_train).
        l2: Penalty per train image, on features of unit spread.

    Returns:
        float (permutations, C, num_test), up to a constant for each permutation and class.
    """
    raw = inputs.features(train)
    standardiser = Standardiser.fit(raw)
    known = standardiser.apply(raw, np.float32)
    asked = standardiser.apply(inputs.features(test), np.float32)
    classes = np.arange(len(inputs.manifest.classes))
    is_of_class = labels[:, None, :] == classes[None, :, None]
    targets = is_of_class.astype(np.float32)
    targets -= targets.mean(axis=2, keepdims=True)
    num_train, num_features = known.shape
    flat = targets.reshape(-1, num_train).T
    penalty = l2 * num_train
    # The smaller of the two linear systems, in images or in features, has the same solution.
    if num_train <= num_features:
        identity = np.eye(num_train, dtype=np.float32)
        gram = known @ known.T + penalty * identity
        solution = cho_solve(cho_factor(gram), flat)
        scores = (asked @ known.T) @ solution
    else:
        identity = np.eye(num_features, dtype=np.float32)
        gram = known.T @ known + penalty * identity
        solution = cho_solve(cho_factor(gram), known.T @ flat)
        scores = asked @ solution
    return scores.T.reshape(len(labels), len(classes), len(test))


def aurocs(ranks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC of every permutation by ranks; of more than two classes the mean over each one against the rest.

    Args:
        ranks: float (permutations, C, n), of the scores of each class.
        labels: int (permutations, n).

    Returns:
        float (permutations,); NaN where a class is absent.
    """
    num_permutations, num_classes, num_rows = ranks.shape
    measured = [1] if num_classes == 2 else range(num_classes)
    mean = np.zeros(num_permutations)
    for label in measured:
        truth = labels == label
        positives = truth.sum(axis=1)
        negatives = num_rows - positives
        pairs = positives * negatives
        rank_sum = (ranks[:, label] * truth).sum(axis=1)
        won = rank_sum - positives * (positives + 1) / 2
        no_value = np.full(num_permutations, np.nan)
        auroc = np.divide(won, pairs, out=no_value, where=pairs > 0)
        mean += auroc / len(measured)
    return mean
