"""The two claims that this project came from, tried: writes docs/claims.md and, below it, all tables.

    python benchmarks/claims.py chest_xray=FOLDER breakhis=FOLDER --official FOLDER

FOLDER holds the finished study (`dvc repro` there, see the page for its settings). For each study and
backbone the page shows the verdicts, and the table as its source reports it (accuracy, sensitivity,
specificity, F1 at 0.5) under three ways of splitting: patients kept whole, images dealt alone, and copies
made before images are dealt. What a single split would have said is drawn again and again. Everything is
fitted by the product's own heads, at one penalty.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.compare import controls
from equipoise.compare.wording import interval_text
from equipoise.core import config
from equipoise.core.config import Study
from equipoise.core.documents import Comparison
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import Endpoint, softmax
from equipoise.scenario.heads import head
from equipoise.scenario.heads.rows import Standardiser
from equipoise.scenario.matrix import Inputs, TrainMatrix
from equipoise.split import strata
from equipoise.strategies.base import Plan, Strategy, load_strategy

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/claims.md"
TABLES = ROOT / "docs/claims-tables.md"

TECHNIQUES = ("baseline", "oversample", "undersample", "class_weight", "weighted_augment")
#: What the first source claims; of it the sentence of the verdict is quoted.
CLAIMED = "weighted_augment"
REPORTED = ("accuracy", "sensitivity", "specificity", "f1")
WHOLE = "patients kept whole"
BY_IMAGE = "images dealt alone"
BEFORE = "copies made before images are dealt"
#: Train parts of a single split, as both sources made them.
TEST_FRACTION = 0.2
_SEED = 20


@dataclass(frozen=True)
class Division:
    """Who trains and who is tested in one round.

    Attributes:
        plan: Rows to train on, positions in the manifest.
        train: int (num_train,), images that features are standardised by.
        test: int (num_test,), images tested; never copies.
    """

    plan: Plan
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Trial:
    """A study and backbone, ready to be divided.

    Attributes:
        inputs: Manifest, split and features.
        matrix: Features of every image and view.
        patients: (num_images,), patient of each image.
        l2: Penalty of every head.
    """

    inputs: Inputs
    matrix: TrainMatrix
    patients: np.ndarray
    l2: float

    @classmethod
    def of(cls, study: Study, backbone: str) -> Trial:
        """Read what the stages wrote."""
        inputs = Inputs.read(study, backbone, "baseline")
        images = np.arange(len(inputs.manifest.table))
        rows = inputs.splits.round(0, 0).set_index("image_id")
        patients = rows.loc[inputs.manifest.table["image_id"], "patient_id"].to_numpy()
        matrix = inputs.train_matrix(images, patients)
        l2 = float(np.median(study.settings.tune.l2_first))
        return cls(inputs, matrix, patients, l2)

    def strategy(self, technique: str) -> Strategy:
        """A technique at its published settings."""
        cls = load_strategy(technique)
        return cls.of(cls.published(self.matrix.views, {}))

    def inside(self, technique: str, train: np.ndarray, test: np.ndarray, seed: int) -> Division:
        """The technique sees train images only, as it should."""
        rows = self.matrix.train_rows(seed, train)
        plan = self.strategy(technique).plan(rows).within(train)
        return Division(plan, train, test)

    def probabilities(self, technique: str, division: Division) -> np.ndarray:
        """Of test images, by a head trained on the plan, float (num_test, C)."""
        matrix = self.matrix
        counts = division.plan.counts(matrix.image_labels, matrix.num_classes)
        objective = self.strategy(technique).objective(counts)
        standardiser = Standardiser.fit(self.inputs.features(division.train))
        fitted = head.fit(
            matrix.features,
            matrix.labels,
            matrix.draws(division.plan),
            objective,
            self.l2,
            standardiser,
        )
        logits = fitted.logits(self.inputs.features(division.test))
        return softmax(logits)

    def evaluated(self, technique: str, divisions: Sequence[Division]) -> Evaluation:
        """Numbers of a technique, with intervals over patients, over the test parts of all rounds."""
        study = self.inputs.study
        rows = self.inputs.splits.round(0, 0)
        frames = []
        for fold, division in enumerate(divisions):
            prob = self.probabilities(technique, division)
            frames.append(
                controls.prediction_rows(self.inputs.manifest, rows, division.test, prob, 0, fold)
            )
        endpoints = [Endpoint("raw", name) for name in REPORTED]
        floor = study.settings.tune.sensitivity_floor
        settings = study.settings.compare
        return controls.evaluated(self.inputs.manifest, frames, settings, floor, endpoints)


# --- ways of splitting ----------------------------------------------------------------------------


def divisions(trial: Trial, technique: str, way: str) -> list[Division]:
    """Every image is tested once; only who may stand on both sides differs."""
    settings = trial.inputs.study.settings.split
    if way == BEFORE:
        return list(_dealt_copies(trial, technique, settings.folds))
    images = np.arange(len(trial.patients))
    kept_together = trial.patients if way == WHOLE else images.astype(str)
    fold_of = _folds(kept_together, trial.matrix.image_labels, settings.folds)
    rounds = []
    for fold in range(settings.folds):
        is_test = fold_of == fold
        train, test = images[~is_test], images[is_test]
        rounds.append(trial.inside(technique, train, test, _SEED + fold))
    return rounds


def _folds(kept_together: np.ndarray, labels: np.ndarray, folds: int) -> np.ndarray:
    table = pd.DataFrame({"patient": kept_together, "label": labels})
    return strata.assign_folds(table, folds, [_SEED])


def _dealt_copies(trial: Trial, technique: str, folds: int) -> Iterator[Division]:
    """The technique sees all images; its draws are dealt like images of their own."""
    matrix = trial.matrix
    images = np.arange(len(trial.patients))
    plan = trial.strategy(technique).plan(matrix.train_rows(_SEED))
    draws = np.arange(len(plan.row))
    fold_of_draw = _folds(draws.astype(str), matrix.image_labels[plan.row], folds)
    is_first = (plan.view == 0) & ~pd.Series(plan.row).where(plan.view == 0).duplicated()
    for fold in range(folds):
        is_test = fold_of_draw == fold
        test = np.sort(plan.row[is_test & is_first.to_numpy()])
        dealt = _part(plan, ~is_test)
        yield Division(dealt, np.setdiff1d(images, test), test)


def _part(plan: Plan, is_kept: np.ndarray) -> Plan:
    return replace(
        plan,
        row=plan.row[is_kept],
        view=plan.view[is_kept],
        partner=plan.partner[is_kept],
        mix=plan.mix[is_kept],
        weight=plan.weight[is_kept],
    )


# --- one split and one seed -----------------------------------------------------------------------


@dataclass(frozen=True)
class Luck:
    """What single splits say of techniques.

    Attributes:
        accuracy: float (num_splits, num_techniques), at 0.5.
    """

    accuracy: np.ndarray

    @property
    def best_of(self) -> dict[str, int]:
        """In how many splits each technique comes out first; of equals the simpler one."""
        first = self.accuracy.argmax(axis=1)
        return {name: int((first == place).sum()) for place, name in enumerate(TECHNIQUES)}

    def difference(self, technique: str) -> np.ndarray:
        """Accuracy less that of doing nothing, float (num_splits,)."""
        return self.accuracy[:, TECHNIQUES.index(technique)] - self.accuracy[:, 0]


def luck(trial: Trial, splits: int) -> Luck:
    """Split patients once, 80 to 20, again and again, and report each as if it were the only one."""
    labels = trial.matrix.image_labels
    images = np.arange(len(labels))
    accuracy = np.empty((splits, len(TECHNIQUES)))
    for number in range(splits):
        table = pd.DataFrame({"patient": trial.patients, "label": labels})
        fold_of = strata.assign_folds(table, round(1 / TEST_FRACTION), [_SEED, number])
        train, test = images[fold_of != 0], images[fold_of == 0]
        for place, technique in enumerate(TECHNIQUES):
            prob = trial.probabilities(technique, trial.inside(technique, train, test, number))
            accuracy[number, place] = (prob.argmax(axis=1) == labels[test]).mean()
    return Luck(accuracy)


# --- the page -------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def verdicts(comparison: Comparison) -> list[str]:
    """Verdict, difference and operating points of every scenario."""
    rows = []
    for backbone, of_backbone in comparison.rows.items():
        for name, row in of_backbone.items():
            delta = row.delta.get(comparison.primary)
            points = [
                f"{point['sensitivity'].value:.3f} / {point['specificity'].value:.3f}"
                for point in (row.raw, row.locked)
            ]
            rows.append(
                [
                    backbone,
                    f"`{name}`",
                    row.verdict,
                    interval_text(delta, "+.4f") if delta else "–",
                    interval_text(row.free["auroc"], ".3f"),
                    *points,
                ]
            )
    header = [
        "network",
        "technique",
        "verdict",
        "difference in AUROC",
        "AUROC",
        "sens / spec at 0.5",
        "sens / spec, locked threshold",
    ]
    return table(header, rows)


@dataclass(frozen=True)
class Reported:
    """The source's table: way of splitting and technique -> its numbers."""

    evaluations: dict[tuple[str, str], Evaluation]

    @classmethod
    def of(cls, trial: Trial) -> Reported:
        """Fit every technique under every way of splitting."""
        evaluations = {}
        for way in (WHOLE, BY_IMAGE, BEFORE):
            for technique in TECHNIQUES:
                rounds = divisions(trial, technique, way)
                evaluations[way, technique] = trial.evaluated(technique, rounds)
        return cls(evaluations)

    def value(self, way: str, technique: str, metric: str) -> float:
        """One number of the table."""
        return float(self.evaluations[way, technique].interval(Endpoint("raw", metric)).value or 0)

    def table(self) -> list[str]:
        """All of it, with intervals over patients."""
        rows = []
        for (way, technique), evaluation in self.evaluations.items():
            numbers = [evaluation.interval(Endpoint("raw", name)) for name in REPORTED]
            cells = [interval_text(number, ".3f") for number in numbers]
            rows.append([way, f"`{technique}`", *cells])
        return table(["split", "technique", *REPORTED], rows)


def in_short(reported: Reported, drawn: Luck, comparison: Comparison, backbone: str) -> list[str]:
    """How much of a claim is leak, threshold and chance on one network, in a sentence each."""
    whole = reported.value(WHOLE, "baseline", "accuracy")
    leak = reported.value(BY_IMAGE, "baseline", "accuracy") - whole
    copies = reported.value(BEFORE, CLAIMED, "accuracy") - reported.value(
        WHOLE, CLAIMED, "accuracy"
    )
    moved = [
        reported.value(WHOLE, "class_weight", name) - reported.value(WHOLE, "baseline", name)
        for name in ("sensitivity", "specificity")
    ]
    rows = comparison.rows[backbone]
    locked = [
        (rows["class_weight"].locked[name].value or 0) - (rows["baseline"].locked[name].value or 0)
        for name in ("sensitivity", "specificity")
    ]
    spread = drawn.accuracy[:, 0]
    difference = drawn.difference(CLAIMED)
    return [
        f"On {backbone}:",
        "",
        f"* **Leak**: dealing images alone adds {leak:+.3f} to the accuracy of doing nothing; with "
        f"copies made before, `{CLAIMED}` gains {copies:+.3f} over itself with patients whole.",
        f"* **Threshold**: at 0.5 class weights move sensitivity by {moved[0]:+.3f} and specificity by "
        f"{moved[1]:+.3f}; at thresholds locked beforehand by {locked[0]:+.3f} and {locked[1]:+.3f}.",
        f"* **Chance**: the accuracy of doing nothing is {spread.min():.3f} to {spread.max():.3f} in "
        f"{len(spread)} single splits of patients, and `{CLAIMED}` differs from it by "
        f"{difference.min():+.3f} to {difference.max():+.3f}.",
        "",
    ]


def of_luck(drawn: Luck) -> list[str]:
    """What single splits say, in a table."""
    rows = []
    first = drawn.best_of
    num_splits = len(drawn.accuracy)
    for place, technique in enumerate(TECHNIQUES):
        accuracy = drawn.accuracy[:, place]
        difference = drawn.difference(technique)
        rows.append(
            [
                f"`{technique}`",
                f"{accuracy.mean():.3f} ({accuracy.min():.3f} to {accuracy.max():.3f})",
                f"{difference.mean():+.3f} ({difference.min():+.3f} to {difference.max():+.3f})"
                if place
                else "–",
                f"{first[technique]} of {num_splits}",
            ]
        )
    header = ["technique", "accuracy", "difference to doing nothing", "comes out first in"]
    return table(header, rows)


@dataclass(frozen=True)
class Told:
    """What is said of one study.

    Attributes:
        short: Lines of the page: the headline, who was tested, and three sentences for each network.
        tables: Lines of the page of tables.
    """

    short: list[str]
    tables: list[str]


def told(study: Study, splits: int) -> Told:
    """What the two pages say of one study."""
    comparison = Comparison.read(study.reports_path / "comparison.json")
    short = [f"*{comparison.headline}*", ""]
    sizes = [f"{count.patients} {name}" for name, count in comparison.test.items()]
    short.append(
        f"{comparison.test_images:,} images of {comparison.test_patients} patients ({', '.join(sizes)}), "
        f"{comparison.scheme}, {comparison.folds} folds, weights "
        f"{', '.join(f'{name}: {Path(used).name}' for name, used in comparison.weights.items())}."
    )
    short.append("")
    tables = [f"## {study.name}", "", "### Verdicts", "", *verdicts(comparison)]
    for backbone, of_backbone in comparison.rows.items():
        tables += [f"> {backbone}: {of_backbone[CLAIMED].reason}", ""]
    for backbone in study.backbones:
        trial = Trial.of(study, backbone)
        reported = Reported.of(trial)
        drawn = luck(trial, splits)
        short += in_short(reported, drawn, comparison, backbone)
        tables += [f"### As the source reports it: {backbone}", "", *reported.table()]
        tables += [f"### One split, one seed: {backbone}", "", *of_luck(drawn)]
    return Told(short, tables)


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Write the two pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", metavar="STUDY=FOLDER", help="finished studies")
    parser.add_argument("--official", type=Path, help="folder of chest_xray on the published sides")
    parser.add_argument("--splits", type=int, default=50, help="single splits that are drawn")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tables", type=Path, default=TABLES)
    options = parser.parse_args()
    print(machine.described())
    text = (Path(__file__).parent / "claims.md").read_text(encoding="utf-8")
    tables = (Path(__file__).parent / "claims-tables.md").read_text(encoding="utf-8")
    for pair in options.studies:
        name, _, folder = pair.partition("=")
        study = config.load_study(name, root=Path(folder))
        with threadpool_limits(limits=1, user_api="blas"):
            of_study = told(study, options.splits)
        text = text.replace(f"<!-- {name} -->", "\n".join(of_study.short).rstrip())
        tables = tables.replace(f"<!-- {name} -->", "\n".join(of_study.tables).rstrip())
        print(name, flush=True)
    if options.official:
        study = config.load_study("chest_xray", root=options.official)
        comparison = Comparison.read(study.reports_path / "comparison.json")
        text = text.replace("<!-- official -->", f"*{comparison.headline}*")
        tables = tables.replace("<!-- official -->", "\n".join(verdicts(comparison)).rstrip())
    for path, page in ((options.page, text), (options.tables, tables)):
        path.write_text(page.replace("<!-- commit -->", commit()), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
