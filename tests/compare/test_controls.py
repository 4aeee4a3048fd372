"""The controls find what they are for, and nothing where nothing is; the leakage verb shows what a leak is worth."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from equipoise.compare import controls, leakage
from equipoise.compare import stage as compare
from equipoise.core import shown
from equipoise.core.documents import Controls, Difference, MeasuredMetric, PermutedLabels
from equipoise.core.files import read_table
from equipoise.core.records import Manifest, Splits
from equipoise.scenario.matrix import Inputs
from equipoise.split import stage as splits
from fabricate import made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _inputs(study):
    return Inputs.read(study, made.BACKBONE, "baseline")


def checks_of(metadata, **permuted):
    return controls.checks_of(Controls(metadata_only=metadata, permuted_labels=permuted))


def _with_metadata(study, strength):
    """The manifest with file sizes that tell the class as strongly as said."""
    manifest = Manifest.read(study.manifest_path)
    rng = np.random.default_rng(2)
    size = np.exp(7 + strength * manifest.table["label"] + rng.normal(size=len(manifest.table)))
    return Manifest(manifest.table.assign(bytes=size.astype(int)), manifest.meta)


def test_metadata_that_tell_the_class_are_found_and_agree_with_scikit_learn(folder):
    study = made.study(folder, patients=(90, 60))
    split, settings = Splits.read(study.splits_path), study.settings.compare
    manifest = _with_metadata(study, 2.0)
    found = controls.metadata_only(manifest, split, settings, 0.9)
    assert found.low > 0.5
    rows = split.round(0, 0).merge(manifest.table.drop(columns="patient_id"), on="image_id")
    values = np.column_stack(
        [np.log(rows[["width_px", "height_px", "bytes"]].to_numpy(float)), rows["grey_mean"]]
    )
    train, test = (rows["part"] == "train").to_numpy(), (rows["part"] == "test").to_numpy()
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2), LogisticRegression(tol=1e-9, max_iter=10_000)
    )
    prob = model.fit(values[train], rows["label"][train]).predict_proba(values[test])[:, 1]
    assert found.value == pytest.approx(roc_auc_score(rows["label"][test], prob))
    assert checks_of(found)[0].answer == "failed"


def test_metadata_that_say_nothing_are_no_finding(folder):
    study = made.study(folder, patients=(90, 60))
    found = controls.metadata_only(
        _with_metadata(study, 0.0), Splits.read(study.splits_path), study.settings.compare, 0.9
    )
    assert found.low < 0.5
    assert checks_of(found)[0].answer == "passed"


@pytest.mark.parametrize(
    "width_px", [64, 1000.1]
)  # the logarithm of the second one has a spread by rounding
def test_metadata_that_never_vary_tell_nothing(folder, width_px):
    study = made.study(folder, patients=(30, 20))
    manifest = Manifest.read(study.manifest_path)
    same = manifest.table.assign(width_px=width_px, height_px=width_px, bytes=700, grey_mean=99.1)
    split, settings = Splits.read(study.splits_path), study.settings.compare
    found = controls.metadata_only(Manifest(same, manifest.meta), split, settings, 0.9)
    assert found.value == 0.5


@pytest.mark.parametrize("classes", [("clear", "opacity"), ("a", "b", "c")])
def test_permuted_labels_are_not_learned_when_patients_are_whole(folder, classes):
    objective = (
        {}
        if len(classes) == 2
        else {"tune": {"objective": "auroc"}, "compare": {"primary": "auroc"}}
    )
    study = made.study(folder, patients=(60, 40, 30)[: len(classes)], classes=classes, **objective)
    inputs = _inputs(study)
    found = controls.permuted_labels(
        inputs, [controls.sides(inputs.manifest, inputs.splits.round(0, 0))], 0.1, 200, 3
    )
    assert found.low <= found.auroc <= found.high
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.1


def test_permuted_labels_are_learned_when_patients_are_on_both_sides(folder):
    inputs = _inputs(made.study(folder, patients=(60, 40)))
    images = np.random.default_rng(1).permutation(len(inputs.manifest.table))
    found = controls.permuted_labels(
        inputs, [controls.Sides(*np.array_split(images, 2))], 0.1, 200, 3
    )
    assert found.auroc > found.high
    nothing = MeasuredMetric(value=0.5, low=0.4, high=0.6)
    check = checks_of(nothing, **{made.BACKBONE: found})[1]
    assert (check.code, check.answer) == ("EQ008", "failed")
    assert made.BACKBONE in check.detail


NOTHING = MeasuredMetric(value=0.5, low=0.4, high=0.6)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_number_that_does_not_exist_is_never_a_finding(missing):
    without = MeasuredMetric(value=missing, low=missing, high=missing)
    lost = PermutedLabels(auroc=missing, low=missing, high=missing, reason="nothing to permute")
    metadata, permuted = checks_of(without, vgg16=lost)
    assert metadata.answer == permuted.answer == "not applicable"
    assert "nan" not in metadata.detail + permuted.detail
    assert permuted.detail == "vgg16: nothing to permute"
    half = MeasuredMetric(value=0.9, low=missing, high=missing)
    assert checks_of(half)[0].answer == "not applicable"


def test_the_backbones_that_have_an_answer_give_it():
    lost = PermutedLabels(auroc=None, low=None, high=None)
    chance = PermutedLabels(auroc=0.5, low=0.49, high=0.51)
    learned = PermutedLabels(auroc=0.6, low=0.49, high=0.51)
    assert checks_of(NOTHING, a=lost, b=chance)[1].answer == "passed"
    assert checks_of(NOTHING, a=chance, b=learned, c=lost)[1].answer == "failed"


def test_where_no_patient_shows_mostly_one_class_nothing_can_be_permuted(folder):
    """Many naevi and one melanoma in every patient: there is no label of a patient to permute."""
    study = made.study(folder, patients=(40, 30))
    manifest = Manifest.read(study.manifest_path)
    table = manifest.table
    # Every image with the opacity goes to a patient who has more clear ones.
    owners = sorted(table.loc[table["label"] == 0, "patient_id"].unique())
    owners = [name for name in owners if (table["patient_id"] == name).sum() == 3]
    seen = {}
    for row in table.index[table["label"] == 1]:
        patient = owners[len(seen) % len(owners)]
        if len(seen) < len(owners):
            seen[row] = patient
    table = table.drop(table.index[(table["label"] == 1) & ~table.index.isin(seen)])
    for row, patient in seen.items():
        table.loc[row, "patient_id"] = patient
    alone = Manifest(table.reset_index(drop=True), manifest.meta)
    inputs = dataclasses.replace(_inputs(study), manifest=alone)
    images = np.random.default_rng(1).permutation(len(table))
    found = controls.permuted_labels(
        inputs, [controls.Sides(*np.array_split(images, 2))], 0.1, 20, 3
    )
    assert (found.auroc, found.low, found.high) == (None, None, None)
    assert "of no patient most images are opacity" in found.reason
    (check,) = checks_of(NOTHING, vgg16=found)[1:]
    assert (check.code, check.answer) == ("EQ008", "not applicable")


def test_a_test_part_without_a_class_tells_nothing(folder):
    inputs = _inputs(made.study(folder, patients=(40, 30)))
    train, test = controls.sides(inputs.manifest, inputs.splits.round(0, 0))
    single = controls.permuted_labels(inputs, [controls.Sides(train, test[:1])], 0.1, 20, 3)
    assert single.auroc is None
    assert single.reason
    both = [controls.Sides(train, test), controls.Sides(train, test[:1])]
    kept = controls.permuted_labels(inputs, both, 0.1, 20, 3)
    alone = controls.permuted_labels(inputs, both[:1], 0.1, 20, 3)
    assert kept.auroc == alone.auroc


def test_the_ridge_of_the_control_is_scikit_learns(folder):
    inputs = _inputs(made.study(folder, patients=(40, 30)))
    train, test = controls.sides(inputs.manifest, inputs.splits.round(0, 0))
    labels = np.random.default_rng(4).integers(0, 2, (3, len(train)))
    for few in (train, train[:6]):  # more rows than features, and fewer
        scores = controls.ridge_scores(inputs, few, test, labels[:, : len(few)], 0.1)
        scaled = StandardScaler().fit(inputs.features(few))
        known, wanted = (
            scaled.transform(inputs.features(few)),
            scaled.transform(inputs.features(test)),
        )
        for row in range(3):
            model = Ridge(alpha=0.1 * len(few)).fit(known, labels[row, : len(few)] == 1)
            expected = model.predict(wanted) - model.intercept_
            np.testing.assert_allclose(scores[row, 1], expected, rtol=1e-3, atol=1e-4)


def test_aurocs_are_scikit_learns_with_ties():
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 6, (4, 3, 40)).astype(float)
    labels = rng.integers(0, 3, (4, 40))
    values = controls.aurocs(rankdata(scores, axis=2), labels)
    for row in range(4):
        expected = np.mean(
            [roc_auc_score(labels[row] == label, scores[row, label]) for label in range(3)]
        )
        assert values[row] == pytest.approx(expected)
    assert np.isnan(
        controls.aurocs(rankdata(scores[:1, :2], axis=2), np.zeros((1, 40), dtype=int))
    )[0]


def test_the_comparison_carries_both_controls(folder):
    study = made.study(folder, patients=(60, 40), run={"scenarios": ["baseline"]})
    made.result(study, "baseline")
    comparison, _ = compare.run(study)
    codes = [check.code for check in comparison.checks]
    assert codes[-2:] == ["EQ007", "EQ008"]
    assert set(comparison.controls.permuted_labels) == {made.BACKBONE}
    assert f"{comparison.controls.metadata_only.value:.3f}" in comparison.checks[-2].detail


def _patients_stand_out(study, num_features=40):
    """Features that are a patient's own and nothing else, with a little noise of each image."""
    store = study.features_path(made.BACKBONE)
    table = Manifest.read(study.manifest_path).table.set_index("sha256")
    index, _ = read_table(store / "index.parquet")
    rng = np.random.default_rng(6)
    people = {name: rng.normal(size=num_features) for name in sorted(table["patient_id"].unique())}
    rows = [people[table.loc[digest, "patient_id"]] for digest in index["sha256"]]
    np.save(
        store / "features.npy",
        (np.stack(rows) + rng.normal(0, 0.1, (len(rows), num_features))).astype(np.float32),
    )


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_leaks_inflate_and_patients_kept_whole_do_not(folder):
    """Features that tell patients apart and say nothing of the class: only a leak can score."""
    study = made.study(folder, patients=(60, 60), compare={"permutations": 40})
    _patients_stand_out(study)
    found = leakage.measure(study, made.BACKBONE)
    rows = found.rows
    whole, by_image = (
        rows[leakage.WHOLE].metrics["free.auroc"],
        rows[leakage.BY_IMAGE].metrics["free.auroc"],
    )
    assert whole.low < 0.5 < whole.high
    assert by_image.low > 0.5
    inflation = rows[leakage.BY_IMAGE].inflation["free.auroc"]
    assert inflation.low > 0
    assert inflation.value == pytest.approx(by_image.value - whole.value)
    assert rows[leakage.WHOLE].inflation["free.auroc"] == Difference(value=0, low=0, high=0)
    control = rows[leakage.WHOLE].permuted_labels
    assert control.low <= control.auroc <= control.high
    assert (
        rows[leakage.BY_IMAGE].permuted_labels.auroc > rows[leakage.BY_IMAGE].permuted_labels.high
    )
    text = str(leakage.page(found))
    assert all(kind in text for kind in rows)
    (again,) = leakage.kept(study)
    assert again.rows[leakage.BY_IMAGE].inflation["free.auroc"] == inflation
    worth = f"{inflation.value:+.3f} [{inflation.low:+.3f}, {inflation.high:+.3f}] split by image"
    assert worth in leakage.sentence(again)
    assert f"{inflation.value:+.3f}" in text
    assert max(len(line) for line in text.splitlines()) <= shown.WIDTH


def test_oversampling_before_the_split_leaks_even_one_image_per_patient(folder):
    study = made.study(folder, patients=(90, 20), signal=0.0, num_features=60)
    manifest = Manifest.read(study.manifest_path)
    alone = pd.Series(manifest.table["image_id"], index=manifest.table.index)
    Manifest(manifest.table.assign(patient=alone, patient_id=alone), manifest.meta).write(
        study.manifest_path
    )
    splits.run(study)
    for name in ("meta.json",):
        path = study.features_path(made.BACKBONE) / name
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "manifest": Manifest.read(study.manifest_path).digest}))
    rows = leakage.measure(study, made.BACKBONE).rows
    assert rows[leakage.BEFORE].inflation["raw.balanced_accuracy"].low > 0.1


def test_every_kind_tests_every_image_once_and_keeps_its_promise(folder):
    inputs = _inputs(made.study(folder, patients=(30, 12)))
    patients = inputs.manifest.table["patient_id"].to_numpy()
    for kind, rounds in leakage.kinds_of_split(inputs, inputs.study.settings.split).items():
        tested = np.concatenate([test for _, test in rounds])
        assert sorted(tested) == list(range(len(patients))), kind
        shared_images = [set(train) & set(test) for train, test in rounds]
        shared_patients = [set(patients[train]) & set(patients[test]) for train, test in rounds]
        assert any(shared_images) == (kind == leakage.BEFORE)
        assert any(shared_patients) == (kind != leakage.WHOLE)


def test_its_folder_holds_nothing_that_could_be_registered(folder):
    study = made.study(folder, patients=(30, 12))
    leakage.measure(study, made.BACKBONE)
    assert [path.name for path in leakage.folder(study, made.BACKBONE).rglob("*")] == [
        "leakage.json"
    ]
    assert leakage.folder(study, made.BACKBONE) != study.result_path(made.BACKBONE, "baseline")


def test_the_honest_arm_uses_the_split_s_groups(folder):
    study = made.study(folder, patients=(30, 12))
    inputs = _inputs(study)
    for train, test in leakage.kinds_of_split(inputs, inputs.study.settings.split)[leakage.WHOLE]:
        groups = inputs.splits.round(0, 0)["patient_id"].to_numpy()
        assert not set(groups[train]) & set(groups[test])
