"""Builders of small fabricated studies: settings, manifests, features and results, without a single picture."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from equipoise.core import config, documents, files, images, records
from equipoise.evaluation import metrics
from equipoise.ingest import fingerprint
from equipoise.scenario.matrix import TrainMatrix
from equipoise.split import checks
from equipoise.split import stage as splits

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
BACKBONE = "vgg16"
SMALL = {
    "split": {
        "scheme": "holdout",
        "folds": 3,
        "repeats": 1,
        "test_fraction": 0.3,
        "val_fraction": 0.3,
    },
    "embed": {"weights": "random", "image_size_px": 32, "views": 2},
    "tune": {
        "trials": 4,
        "inner_folds": 3,
        "batch_trials": 4,
        "gain_resamples": 30,
        "sensitivity_floor": 0.9,
    },
    "train": {"seeds": [0, 1]},
    "calibrate": {"min_patients": 3},
    "compare": {"resamples": 200, "permutations": 20},
}


def params(
    run: dict[str, Any] | None = None, scenarios: dict[str, Any] | None = None, **sections: Any
) -> dict:
    """The repo's own params.yaml with one study, "made", small numbers, and sections laid over it."""
    values = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    own = copy.deepcopy(SMALL)
    for name, section in sections.items():
        own[name] = {**own.get(name, {}), **section}
    for name in config.Settings.model_fields:
        own.setdefault(name, {})
    own["ingest"].setdefault("dataset", "chest_xray")
    values["studies"] = {"made": own}
    values["run"] = {
        "studies": ["made"],
        "backbones": [BACKBONE],
        "scenarios": ["baseline", "oversample"],
    }
    values["run"] |= run or {}
    values["scenarios"] |= scenarios or {}
    return values


def settings(**sections: Any) -> config.Settings:
    """Settings of the small study."""
    return config.load_study("made", params(**sections)).settings


def tune_section(**changes: Any) -> config.Tune:
    """A `tune` section with some numbers changed."""
    return settings(tune=changes).tune


def study(
    folder: Path,
    patients: tuple[int, ...] = (45, 20),
    classes: tuple[str, ...] = ("clear", "opacity"),
    positive: str | None = None,
    signal: float = 1.5,
    num_features: int = 8,
    official_overlap: int | None = None,
    **changes: Any,
) -> config.Study:
    """Write params.yaml, manifest, splits and features of a fabricated study; the working folder must be `folder`.

    Args:
        folder: Where everything goes.
        patients: Patients per class; each has one to three images.
        classes: Names.
        positive: The positive class; the last when left out.
        signal: Distance between the class means, in standard deviations of one feature.
        num_features: Width of the features.
        official_overlap: Give published sides that share this many patients of each class.
        changes: For `params`.
    """
    assert Path.cwd() == folder
    contents = params(**changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(contents), encoding="utf-8")
    made = config.load_study("made", contents, root=folder)
    rng = np.random.default_rng(5)
    rows = []
    for label, (name, count) in enumerate(zip(classes, patients)):
        for person in range(count):
            for picture in range(1 + person % 3):
                image_id = f"{name}/p{label}{person:03d}_{picture}.png"
                side = "test" if person % 3 == 0 else "train"
                if (
                    official_overlap
                    and picture == 1
                    and person // 3 < official_overlap
                    and person % 3 == 1
                ):
                    side = "test"
                rows.append(
                    {
                        "image_id": image_id,
                        "sha256": hashlib.sha256(image_id.encode()).hexdigest(),
                        "picture": hashlib.sha256(image_id.encode()).hexdigest(),
                        "path": image_id,
                        "label": label,
                        "class_name": name,
                        "patient_id": f"p{label}{person:03d}",
                        "patient": f"p{label}{person:03d}",
                        **{"width_px": 32, "height_px": 32, "bytes": 100, "grey_mean": 128.0},
                        **({} if official_overlap is None else {"official_split": side}),
                    }
                )
    table = pd.DataFrame(rows)
    meta = {
        **{
            "study": "made",
            "dataset": "chest_xray",
            "classes": list(classes),
            "readings": ["patient"],
        },
        "positive_class": positive or classes[-1],
        "settings": made.settings.sections("ingest"),
    }
    manifest = records.Manifest(table, meta).write(made.manifest_path)
    _ingest_summary(manifest).write(made.manifest_path.with_suffix(".json"))
    splits.run(made)
    means = rng.normal(size=(len(classes), num_features))
    means *= signal / np.linalg.norm(means, axis=1, keepdims=True)
    people = {
        person: rng.normal(scale=0.3, size=num_features) for person in table["patient_id"].unique()
    }
    plain = np.stack([means[row.label] + people[row.patient_id] for row in table.itertuples()])
    plain = plain + rng.normal(scale=0.7, size=plain.shape)
    minority = table["label"].isin(records.minority_labels(manifest.counts())).to_numpy()
    index, blocks = [table[["sha256"]].assign(view=0)], [plain]
    for view in range(1, made.settings.embed.views + 1):
        index.append(table.loc[minority, ["sha256"]].assign(view=view))
        blocks.append(plain[minority] + rng.normal(scale=0.2, size=(minority.sum(), num_features)))
    for backbone in {BACKBONE, *made.backbones}:
        store = made.features_path(backbone)
        store.mkdir(parents=True)
        np.save(store / "features.npy", np.concatenate(blocks).astype(np.float32))
        files.write_table(store / "index.parquet", pd.concat(index, ignore_index=True), {})
        described = {
            "backbone": backbone,
            "weights": "random",
            "weights_digest": "0" * 64,
            "image_size_px": 32,
        }
        described |= {
            "pipeline": "made",
            "manifest": manifest.digest,
            "digest": files.digest_of("features"),
        }
        described["settings"] = made.settings.sections("embed", "augment")
        files.write_json(store / "meta.json", described)
    return made


def _ingest_summary(manifest: records.Manifest) -> documents.IngestSummary:
    table, classes, counts = manifest.table, manifest.classes, manifest.counts()
    return documents.IngestSummary(
        study="made",
        dataset="chest_xray",
        classes=list(classes),
        positive_class=manifest.positive_class,
        patient_ids=True,
        source="nowhere",
        licence="none",
        citation="none",
        manifest=manifest.digest,
        raw=fingerprint.names_and_sizes(fingerprint.list_files(Path("nowhere")), hashed=False),
        code=fingerprint.code(),
        images=len(table),
        patients=int(table["patient_id"].nunique()),
        pseudonymised=False,
        files_seen=len(table),
        other_files_ignored=0,
        left_out={},
        selection="",
        not_selected=0,
        quarantined=0,
        near_copies=0,
        alike=0,
        label_conflicts=0,
        flagged=dict.fromkeys(images.FLAGS, 0),
        by_class=records.class_table(table["label"].to_numpy(), table["patient_id"], classes),
        minority_classes=[classes[label] for label in records.minority_labels(counts)],
        imbalance_ratio=records.imbalance_ratio(counts),
        completeness="made up",
    )


def predictions(
    logits: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray | None = None,
    classes: tuple[str, ...] = ("clear", "opacity"),
    **columns: Any,
) -> records.Predictions:
    """Predictions of test rows from logits of the positive class (n,), or of all classes (n, C)."""
    logits = np.asarray(logits, dtype=float)
    if logits.ndim == 1:
        logits = np.stack([np.zeros(len(logits)), logits], axis=1)
    probabilities = metrics.softmax(logits)
    count = len(labels)
    table = pd.DataFrame(
        {
            "image_id": [f"image{index}" for index in range(count)],
            "patient_id": [f"p{index}" for index in range(count)] if patients is None else patients,
            **{"repeat": 0, "fold": 0, "seed": 0, "part": "test", "label": np.asarray(labels)},
            **{"overlap": False, "threshold": 0.5 if len(classes) == 2 else np.nan},
        }
    ).assign(**columns)
    for index, name in enumerate(classes):
        table[f"prob_{name}"] = table[f"calibrated_{name}"] = probabilities[:, index]
    return records.Predictions(table, {"classes": list(classes), "positive_class": classes[-1]})


def result(
    study: config.Study,
    scenario: str,
    strength: float = 1.0,
    inner_score: float = 0.5,
    backbone: str = BACKBONE,
) -> Path:
    """Write a fabricated result; `strength` is how far the logit of the true class stands out of the same noise."""
    manifest = records.Manifest.read(study.manifest_path)
    split = records.Splits.read(study.splits_path)
    labels = manifest.table.set_index("image_id")["label"]
    frames = []
    for repeat, fold in split.rounds():
        rows = split.round(repeat, fold)
        rows = rows[rows["part"] != "train"].reset_index(drop=True)
        truth = labels.loc[rows["image_id"]].to_numpy()
        noise = np.random.default_rng(3).normal(size=(len(rows), len(manifest.classes)))
        logits = noise + strength * np.eye(len(manifest.classes))[truth]
        columns = {
            "image_id": rows["image_id"],
            "repeat": repeat,
            "fold": fold,
            "part": rows["part"],
        }
        frames.append(
            predictions(logits, truth, rows["patient_id"], manifest.classes, **columns).table
        )
    meta = {"classes": list(manifest.classes), "positive_class": manifest.positive_class}
    folder = study.result_path(backbone, scenario)
    written = records.Predictions(pd.concat(frames, ignore_index=True), meta).write(
        folder / "predictions.parquet"
    )
    summary = _scenario_summary(study, manifest, split, written, backbone, scenario, inner_score)
    summary = summary.model_copy(
        update={"result_digest": files.digest_of([scenario, strength, inner_score])}
    )
    summary.write(folder / "metrics.json")
    documents.Choices([_choice(study, manifest, inner_score)]).write(folder / "best.json")
    plan = split.round(0, 0)
    plan = plan.loc[plan["part"] == "train", ["image_id", "repeat", "fold"]].assign(
        seed=0, view=0, weight=1.0
    )
    files.write_table(folder / "plan.parquet", plan, meta)
    return folder


def _scenario_summary(
    study: config.Study,
    manifest: records.Manifest,
    split: records.Splits,
    written: records.Predictions,
    backbone: str,
    scenario: str,
    inner_score: float,
) -> documents.ScenarioSummary:
    counts = manifest.counts()
    test = written.part("test").table
    return documents.ScenarioSummary(
        study=study.name,
        backbone=backbone,
        scenario=scenario,
        classes=list(manifest.classes),
        positive_class=manifest.positive_class,
        mode="probe",
        weights="random",
        passes=None,
        majority_class=manifest.classes[int(counts.argmax())],
        minority_classes=[manifest.classes[label] for label in records.minority_labels(counts)],
        test=records.class_table(test["label"].to_numpy(), test["patient_id"], manifest.classes),
        rows={"test": len(test), "patients": int(test["patient_id"].nunique())},
        inner_score=inner_score,
        metrics={},
        distribution=_distribution(manifest, split.round(0, 0)),
        non_overlapping=None,
        seed_has_effect=None,
        checks=[check.as_dict() for check in checks.check_split(split, manifest)],
        digests={
            "manifest": manifest.digest,
            "splits": split.digest,
            "predictions": written.digest,
        },
        settings=study.settings.sections("tune"),
        result_digest="",
    )


def _choice(
    study: config.Study, manifest: records.Manifest, inner_score: float
) -> documents.RoundChoice:
    counts = manifest.counts().tolist()
    return documents.RoundChoice(
        repeat=0,
        fold=0,
        seed=0,
        settings={"l2": 0.1},
        score=inner_score,
        best_score=inner_score,
        published_score=inner_score,
        gain=0.0,
        gain_se=None,
        objective=study.settings.tune.objective,
        identified=False,
        feasible=True,
        reason="",
        trials=1,
        failed_trials=0,
        inner_folds=study.settings.tune.inner_folds,
        inner_draws=(inner_score + 0.01 * np.random.default_rng(5).normal(size=50)).tolist(),
        train_counts=counts,
        plan_counts=counts,
        gradient_norm=0.0,
        calibrator={"slope": 1.0, "biases": [0.0] * len(counts), "reason": ""},
        threshold=0.5,
    )


def _distribution(manifest: records.Manifest, rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.merge(manifest.table[["image_id", "label"]], on="image_id")
    stages = {"all": rows}
    for part in records.PARTS:
        if (rows["part"] == part).any():
            stages[part] = rows[rows["part"] == part]
    stages["plan"] = stages["train"]
    return {
        stage: records.class_table(table["label"].to_numpy(), table["patient_id"], manifest.classes)
        for stage, table in stages.items()
    }


def train_matrix(
    patients: tuple[int, ...] = (30, 12),
    num_features: int = 6,
    views: int = 2,
    signal: float = 1.2,
    seed: int = 0,
) -> TrainMatrix:
    """Train rows of made-up patients, one to three images each, the minority with views."""
    rng = np.random.default_rng(seed)
    pairs = [
        (f"p{label}{person:03d}", label)
        for label, count in enumerate(patients)
        for person in range(count)
        for _ in range(1 + person % 3)
    ]
    people, labels = np.array([name for name, _ in pairs]), np.array([label for _, label in pairs])
    plain = rng.normal(size=(len(labels), num_features))
    plain[np.arange(len(labels)), labels % num_features] += signal
    minority = np.flatnonzero(
        np.isin(labels, records.minority_labels(np.bincount(labels, minlength=len(patients))))
    )
    row = np.concatenate([np.arange(len(labels)), np.tile(minority, views)])
    view = np.concatenate(
        [np.zeros(len(labels), dtype=int), np.repeat(np.arange(1, views + 1), len(minority))]
    )
    features = plain[row] + (view > 0)[:, None] * rng.normal(
        scale=0.2, size=(len(row), num_features)
    )
    return TrainMatrix(
        features.astype(np.float32),
        row,
        view,
        labels,
        people,
        len(patients),
        views,
        len(patients) - 1,
    )
