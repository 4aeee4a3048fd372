"""Does fine-tuning learn? Its losses by step on slices of train, with and without averaged weights.

    python benchmarks/finetune_slices.py --study chest_xray --backbone densenet121 [--l2 0.01] [--folds 0 1] [--set ...]

Run it where `equipoise embed` has run for that study and backbone, with one test part: only train is read. Each of
five folds of its patients is set aside once. Printed are the objective on the images that are trained on, that on the
fold by the weights of the last step and by their averages, and the AUROC of these.
"""

import argparse
from pathlib import Path

from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.core import config
from equipoise.scenario import finetune
from equipoise.scenario.loss import mean_loss
from equipoise.scenario.matrix import Inputs
from equipoise.strategies import base as strategies

HEADINGS = "step   train   fold: last step   averaged   AUROC"


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
        yield finetune.Task({**published, "l2": l2}, images, patients, held, seed=0)


def row(training: finetune.Training, step: int) -> str:
    """The losses of the weights as they are now."""
    labels = training.labels
    on_train = training.reader.logits(training.kept)
    last = training.reader.logits(training.held)
    averaged = training.evaluate(step)
    train_loss = mean_loss(on_train, labels[training.kept], training.objective)
    last_loss = mean_loss(last, labels[training.held], training.objective)
    difference = averaged.logits[:, 1] - averaged.logits[:, 0]
    auroc = roc_auc_score(labels[training.held], difference)
    return f"{step:4}   {train_loss:.4f}   {last_loss:13.4f}   {averaged.loss:8.4f}   {auroc:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="chest_xray")
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--scenario", default="baseline")
    parser.add_argument("--l2", type=float, default=0.01)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="holds params.yaml")
    parser.add_argument("--set", action="append", default=[], help="a setting, section.key=value")
    options = parser.parse_args()
    overrides = dict(map(config.parse_override, options.set))
    study = config.load_study(options.study, None, overrides, root=options.root)
    inputs = Inputs.read(study, options.backbone, options.scenario)
    for fold, task in enumerate(tasks(inputs, options.l2)):
        if fold not in options.folds:
            continue
        training = finetune.Training(inputs, task)
        print(f"fold {fold}, l2 {options.l2}", HEADINGS, sep="\n", flush=True)
        for evaluation in training.evaluations():
            print(row(training, evaluation.step), flush=True)


if __name__ == "__main__":
    main()
