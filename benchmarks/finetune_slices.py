"""Does fine-tuning learn? Its losses by step on slices of train, with and without averaged weights.

    python benchmarks/finetune_slices.py --study chest_xray --backbone densenet121 [--l2 0.01] [--folds 0 1] \
        [--epsilon 1e-7] [--set finetune.learning_rate=0.0001 ...]

Run it where `equipoise embed` has run for that study and backbone, with one test part: only train is read. Each of
five folds of its patients is set aside once. Printed are the mean loss of the steps since the row before (with the
penalty), the objective on the fold by the weights of the last step and by their averages, and the AUROC of these.

The score of a fold is the logarithm of its objective over that at the start, at the step that is lowest on average of
the other folds: fine-tuning too chooses its step on some patients and is judged by others. Below 0 it learned.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.core import config
from equipoise.scenario.finetuning import finetune
from equipoise.scenario.heads.loss import mean_loss
from equipoise.scenario.matrix import Inputs
from equipoise.strategies import base as strategies

HEADINGS = "step    train   fold: last step   averaged   AUROC"


def tasks(inputs: Inputs, l2: float):
    """A training for each fold of the patients of train."""
    views = inputs.study.settings.embed.views
    published = strategies.load_strategy(inputs.scenario).published(views, {})
    rows = inputs.splits.round(0, 0)
    train = rows[rows["part"] == "train"]
    position = {name: at for at, name in enumerate(inputs.manifest.table["image_id"])}
    images = train["image_id"].map(position).to_numpy()
    patients = train["patient_id"].to_numpy()
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for _, held in folds.split(images, inputs.labels(images), patients):
        settings = {**published, "l2": l2}
        # No checkpoint: a benchmark that was stopped begins anew.
        yield finetune.Task(settings, images, patients, held, seed=0, save_seconds=math.inf)


def row(training: finetune.Training) -> str:
    """What the latest evaluation says, and the weights of the last step beside it."""
    labels = training.labels[training.held]
    step, train_loss, averaged_loss = training.curve[-1]
    last = training.reader.logits(training.held)
    last_loss = mean_loss(last, labels, training.objective)
    averaged = training.evaluate(step).logits
    auroc = roc_auc_score(labels, averaged[:, 1] - averaged[:, 0])
    return f"{step:4}   {train_loss:6.4f}   {last_loss:15.4f}   {averaged_loss:8.4f}   {auroc:.4f}"


def scores(curves: np.ndarray) -> np.ndarray:
    """Of each fold, from the logarithms (num_folds, num_evaluations) of objectives over those at the start."""
    chosen = []
    for fold, curve in enumerate(curves):
        others = np.delete(curves, fold, axis=0)
        step = others.mean(axis=0).argmin()
        chosen.append(curve[step])
    return np.array(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="chest_xray")
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--scenario", default="baseline")
    parser.add_argument("--l2", type=float, default=0.01)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epsilon", type=float, default=1e-7, help="of Adam")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="holds params.yaml")
    parser.add_argument("--set", action="append", default=[], help="a setting, section.key=value")
    options = parser.parse_args()
    overrides = dict(map(config.parse_override, options.set))
    study = config.load_study(options.study, None, overrides, root=options.root)
    inputs = Inputs.read(study, options.backbone, options.scenario)
    curves = []
    for fold, task in enumerate(tasks(inputs, options.l2)):
        if fold not in options.folds:
            continue
        training = finetune.Training(inputs, task)
        # Read when the step is compiled, which is at the first batch.
        training.optimizer.epsilon = options.epsilon
        print(f"fold {fold}, l2 {options.l2}", HEADINGS, sep="\n", flush=True)
        for _ in training.evaluations():
            print(row(training), flush=True)
        losses = np.array([losses.slice_loss for losses in training.curve])
        curves.append(np.log(losses / losses[0]))
    if len(curves) > 1:
        of_folds = scores(np.array(curves))
        print(f"scores {np.round(of_folds, 3)}: mean {of_folds.mean():.3f}")


if __name__ == "__main__":
    main()
