"""Parts in whole patients, whatever the manifest; and the checks that catch a split edited by hand."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import checks, config, splits
from equipoise.errors import ConfigError, DataError, LeakageError
from equipoise.records import PARTS, Manifest, Plan, Splits, read_json

ROOT = Path(__file__).resolve().parents[1]
SPLIT = config.load_study("demo", config.read_params(ROOT)).settings.split

quick = settings(max_examples=40, deadline=None, database=None)


def _settings(**changes):
    return config.Split.model_validate({**SPLIT.model_dump(), **changes})


def _manifest(patients, classes=("a", "b"), sides=None):
    """A manifest of `{patient: (label, ...)}`, one label per image; `sides` are the published ones by patient."""
    rows = [
        {
            "image_id": f"{patient}/{image}.png",
            "sha256": f"{patient}-{image}",
            "label": label,
            "class_name": classes[label],
            "patient_id": patient,
            "person": patient,
            "site": f"site {patient[-1]}",
            **({"official_split": sides[patient][image]} if sides else {}),
        }
        for patient, labels in patients.items()
        for image, label in enumerate(labels)
    ]
    table = pd.DataFrame(rows).assign(path="x.png", width_px=8, height_px=8, bytes=10)
    meta = {
        "study": "made_up",
        "dataset": "made_up",
        "classes": list(classes),
        "positive_class": classes[1],
        "readings": ["person", "site"],
    }
    return Manifest(table, meta, "digest of the manifest")


def _plain(patients_per_class=(20, 8), images=2):
    return _manifest(
        {
            f"{'ab'[label]}{number:03d}": (label,) * images
            for label in (0, 1)
            for number in range(patients_per_class[label])
        }
    )


def _part_of(made, repeat=0, fold=0):
    """Part by patient; fails when a patient has two."""
    parts = made.round(repeat, fold).groupby("patient_id")["part"].agg(set)
    assert (parts.map(len) == 1).all()
    return parts.map(lambda values: next(iter(values)))


def _shuffled(manifest, seed):
    order = np.random.default_rng(seed).permutation(len(manifest.table))
    return Manifest(manifest.table.iloc[order].reset_index(drop=True), manifest.meta, manifest.digest)


def _moved(made, chosen, part):
    table = made.table.copy()
    table.loc[chosen(table), "part"] = part
    return Splits(table, made.meta)


@st.composite
def manifests(draw, fewest=5, official=False):
    """At least `fewest` patients of each class, some of both, one to four images each, in any order."""
    counts = [draw(st.integers(fewest, 14)), draw(st.integers(fewest, 14)), draw(st.integers(0, 4))]
    patients = {}
    for kind, count in enumerate(counts):
        for number in range(count):
            images = draw(st.integers(1, 4))
            labels = (kind,) * images if kind < 2 else (0, 1) * images
            patients[f"{'abm'[kind]}{number:02d}"] = labels
    sides = None
    if official:
        sides = {
            patient: tuple("test" if int(patient[1:]) >= fewest else "train" for _ in labels)
            for patient, labels in patients.items()
        }
    names = draw(st.permutations(sorted(patients)))
    return _manifest({name: patients[name] for name in names}, sides=sides)


schemes = st.sampled_from(["holdout", "kfold"])
fractions = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5])
seeds = st.integers(0, 2**31)


# --- properties ------------------------------------------------------------------------------------------------------


@quick
@given(manifests(), schemes, fractions, fractions, st.integers(2, 5), st.integers(1, 2), seeds)
def test_every_round_divides_all_images_in_whole_patients(manifest, scheme, val, test, folds, repeats, seed):
    chosen = _settings(
        scheme=scheme, val_fraction=val, test_fraction=test, folds=folds, repeats=repeats, seed=seed, group_by="person"
    )
    made = splits.make(manifest, chosen)
    assert len(made.rounds()) == repeats * (folds if scheme == "kfold" else 1)
    owner = manifest.table.set_index("image_id")["person"]
    for repeat, fold in made.rounds():
        rows = made.round(repeat, fold)
        assert rows["image_id"].tolist() == manifest.table["image_id"].tolist()
        assert rows["patient_id"].tolist() == owner[rows["image_id"]].tolist()
        assert set(_part_of(made, repeat, fold)) == set(PARTS)
    found = {check.code: check.answer for check in checks.run(made, manifest)}
    assert (found["EQ001"], found["EQ002"], found["EQ-OFFICIAL"]) == ("none", "none", "not applicable")


@quick
@given(manifests(), schemes, seeds, seeds)
def test_row_order_does_not_matter(manifest, scheme, seed, order):
    chosen = _settings(scheme=scheme, seed=seed)
    keys = ["repeat", "fold", "image_id"]
    one, two = (
        splits.make(made, chosen).table.sort_values(keys, ignore_index=True)
        for made in (manifest, _shuffled(manifest, order))
    )
    pd.testing.assert_frame_equal(one, two)


@quick
@given(manifests(), schemes, seeds)
def test_same_seed_same_split(manifest, scheme, seed):
    chosen = _settings(scheme=scheme, seed=seed, repeats=2)
    pd.testing.assert_frame_equal(splits.make(manifest, chosen).table, splits.make(manifest, chosen).table)


@pytest.mark.parametrize("scheme", ["holdout", "kfold"])
def test_other_seed_and_other_repeat_give_another_split(scheme):
    manifest = _plain((30, 10))
    drawn = [splits.make(manifest, _settings(scheme=scheme, seed=seed, repeats=2)) for seed in (1, 2)]
    for part in ("test", "val"):
        assert len({tuple(_part_of(made, repeat) == part) for made in drawn for repeat in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("scheme", "tested"),
    [("holdout", ["a000", "a005", "b003"]), ("kfold", ["a001", "a005", "a007", "b000"])],
)
def test_draw_is_the_same_on_every_machine(scheme, tested):
    part = _part_of(splits.make(_plain((8, 4)), _settings(scheme=scheme, folds=3, test_fraction=0.25, seed=1)))
    assert sorted(part.index[part == "test"]) == tested


@quick
@given(manifests(), fractions, fractions, seeds)
def test_patient_shares_are_within_one_patient_of_the_target(manifest, val, test, seed):
    made = splits.make(manifest, _settings(val_fraction=val, test_fraction=test, seed=seed))
    part = _part_of(made)
    strata = manifest.table.groupby("person")["label"].agg(lambda labels: tuple(sorted(set(labels))))
    for stratum in strata.unique():
        parts = part[strata.index[strata == stratum]]
        in_test, in_val = (parts == "test").sum(), (parts == "val").sum()
        assert abs(in_test - test * len(parts)) <= 1
        assert abs(in_val - val * (len(parts) - in_test)) <= 1
        if len(parts) >= 4:
            assert min(in_test, in_val, len(parts) - in_test - in_val) >= 1


@quick
@given(manifests(), st.integers(2, 5), st.integers(1, 3), seeds)
def test_kfold_tests_every_patient_once_per_repeat(manifest, folds, repeats, seed):
    made = splits.make(manifest, _settings(scheme="kfold", folds=folds, repeats=repeats, seed=seed))
    tested = made.table[made.table["part"] == "test"]
    for _, rows in tested.groupby("repeat"):
        assert sorted(rows["image_id"]) == sorted(manifest.table["image_id"])
        assert (rows.groupby("patient_id")["fold"].nunique() == 1).all()


@quick
@given(manifests(), st.integers(2, 5), seeds)
def test_folds_differ_by_at_most_one_patient_per_stratum_and_in_all(manifest, folds, seed):
    rows = pd.DataFrame({"patient": manifest.table["person"], "label": manifest.table["label"]})
    fold = rows.assign(fold=splits.assign_folds(rows, folds, [seed])).groupby("patient")["fold"].first()
    strata = rows.groupby("patient")["label"].agg(lambda labels: tuple(sorted(set(labels))))
    for chosen in (fold, *(fold[strata == stratum] for stratum in strata.unique())):
        counts = np.bincount(chosen, minlength=folds)
        assert counts.max() - counts.min() <= 1


@quick
@given(manifests(official=True), fractions, seeds)
def test_official_keeps_the_published_sides(manifest, val, seed):
    made = splits.make(manifest, _settings(scheme="official", val_fraction=val, seed=seed))
    rows = made.round(0, 0)
    published = manifest.table["official_split"].to_numpy()
    np.testing.assert_array_equal(rows["part"] == "test", published == "test")
    assert {"train", "val"} <= set(_part_of(made))


# --- what cannot be split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "counts", "needed"),
    [
        ({"scheme": "holdout"}, (20, 2), 3),
        ({"scheme": "kfold", "folds": 5}, (20, 4), 5),
        ({"scheme": "kfold", "folds": 2}, (3, 9), 4),
    ],
)
def test_too_few_patients_are_refused_with_the_counts(changes, counts, needed):
    with pytest.raises(DataError) as error:
        splits.make(_plain(counts), _settings(**changes))
    assert str(error.value).startswith(
        f"split.scheme: {changes['scheme']} needs at least {needed} patients of every class, "
        f"found a {counts[0]}, b {counts[1]} (group_by: person)."
    )


def test_class_without_an_image_is_counted_too():
    manifest = _manifest({f"p{number}": (0,) for number in range(9)})
    with pytest.raises(DataError, match="found a 9, b 0"):
        splits.make(manifest, _settings())


def test_official_needs_patients_on_the_train_side():
    patients = {f"p{number}": (number % 2,) for number in range(12)}
    sides = {patient: ("train" if number in (0, 1, 2) else "test",) for number, patient in enumerate(patients)}
    with pytest.raises(DataError, match="on the published train side, found a 2, b 1"):
        splits.make(_manifest(patients, sides=sides), _settings(scheme="official"))


def test_official_without_published_sides_is_refused():
    with pytest.raises(ConfigError, match=r"dataset 'made_up' publishes no split\. Use holdout or kfold"):
        splits.make(_plain(), _settings(scheme="official"))


@pytest.mark.parametrize(
    ("changes", "fewest"),
    [({"scheme": "kfold", "folds": 2}, 4), ({"scheme": "kfold", "folds": 3}, 3), ({"test_fraction": 0.5}, 3)],
)
def test_fewest_allowed_patients_reach_every_part(changes, fewest):
    made = splits.make(_plain((20, fewest)), _settings(**changes))
    for repeat, fold in made.rounds():
        part = _part_of(made, repeat, fold)
        assert set(part[part.index.str.startswith("b")]) == set(PARTS)


# --- who is a patient ------------------------------------------------------------------------------------------------


def test_group_by_another_reading_keeps_its_groups_whole():
    manifest = _plain((40, 30))
    made = splits.make(manifest, _settings(group_by="site"))
    assert made.meta["group_by"] == "site"
    assert set(_part_of(made).index) == {f"site {digit}" for digit in range(10)}


def test_group_by_defaults_to_the_first_reading():
    assert splits.make(_plain(), _settings(group_by=None)).meta["group_by"] == "person"


def test_unknown_group_by_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        splits.make(_plain(), _settings(group_by="persn"))
    assert str(error.value) == (
        "There is no reading of the patient 'persn' for dataset 'made_up'. Did you mean 'person'? Known: person, site."
    )


def test_patient_of_both_classes_stays_whole_and_is_drawn_among_its_like():
    patients = {f"p{number:02d}": (0, 1) for number in range(8)}
    part = _part_of(splits.make(_manifest(patients), _settings(test_fraction=0.25, val_fraction=0.5)))
    assert Counter(part) == {"test": 2, "val": 3, "train": 3}


# --- files -----------------------------------------------------------------------------------------------------------


def test_run_writes_the_split_and_the_counts_it_reached(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    study = config.load_study("demo")
    plain = _plain((20, 10))
    manifest = Manifest(plain.table, {**plain.meta, "study": "demo"}).write(study.manifest_path)
    made, summary = splits.run(study)
    files = study.splits_path, study.splits_path.with_suffix(".json")
    first = [path.read_bytes() for path in files]
    assert Splits.read(study.splits_path).digest == made.digest == summary["splits"]
    assert made.meta["manifest"] == summary["manifest"] == manifest.digest
    parts = read_json(files[1])["rounds"][0]["parts"]
    assert sum(parts[part]["b"]["patients"] for part in PARTS) == 10
    assert sum(parts[part]["a"]["images"] for part in PARTS) == 40
    assert parts["test"]["a"]["patients"] == round(20 * study.settings.split.test_fraction)
    splits.run(study)
    assert [path.read_bytes() for path in files] == first


# --- checks ----------------------------------------------------------------------------------------------------------


def test_patient_moved_by_hand_is_a_leak_told_with_its_images():
    manifest = _plain(images=4)
    made = splits.make(manifest, _settings())
    patient = made.table.loc[made.table["part"] == "train", "patient_id"].iloc[0]
    moved = _moved(made, lambda table: table["image_id"] == f"{patient}/3.png", "test")
    with pytest.raises(LeakageError) as error:
        checks.run(moved, manifest)
    assert str(error.value) == (
        f"patient '{patient}' is in train (3 images) and test (1 images) of data/splits/made_up.parquet, repeat 0, "
        f'fold 0. A patient must be in exactly one part. Run "equipoise split"; if the file was edited by hand, '
        f'restore it with "dvc checkout".'
    )


def test_leak_in_a_later_fold_names_that_fold():
    manifest = _plain((20, 8))
    made = splits.make(manifest, _settings(scheme="kfold", folds=4))
    last = made.round(0, 3)
    image = last.loc[last["part"] == "train", "image_id"].iloc[0]
    moved = _moved(made, lambda table: (table["fold"] == 3) & (table["image_id"] == image), "val")
    with pytest.raises(LeakageError, match=r"is in train \(1 images\) and val \(1 images\) of .*, repeat 0, fold 3\."):
        checks.run(moved, manifest)


def test_picture_on_two_sides_is_a_leak_even_between_patients():
    manifest = _plain(images=1)
    made = splits.make(manifest, _settings())
    train, test = (made.table.loc[made.table["part"] == part, "image_id"].iloc[0] for part in ("train", "test"))
    table = manifest.table.copy()
    table.loc[table["image_id"].isin([train, test]), "sha256"] = "0123456789abcdef"
    with pytest.raises(
        LeakageError, match=r"picture '0123456789ab\.\.\.' is in train \(1 images\) and test \(1 images\)"
    ):
        checks.run(made, Manifest(table, manifest.meta))


def test_split_of_another_manifest_is_refused():
    made = splits.make(_plain((20, 8)), _settings())
    with pytest.raises(LeakageError, match="split of study 'made_up' holds other images than its manifest"):
        checks.run(made, _plain((20, 9)))


@pytest.mark.parametrize("fault", ["dropped", "twice", "part"])
def test_round_that_is_no_division_of_the_manifest_is_refused(fault):
    manifest = _plain((20, 8))
    made = splits.make(manifest, _settings(scheme="kfold", folds=4))
    table = made.table
    if fault == "dropped":
        table = table.drop(index=0)
    elif fault == "twice":
        table = pd.concat([table, table.iloc[:1]])
    else:
        table = table.assign(part=table["part"].replace("val", "validation"))
    with pytest.raises(DataError):
        checks.run(Splits(table, made.meta), manifest)


def test_class_absent_from_a_part_is_a_finding():
    manifest = _plain((20, 8))
    made = splits.make(manifest, _settings())
    assert {check.code: check.answer for check in checks.run(made, manifest)}["EQ003"] == "none"
    rare = _moved(made, lambda table: (table["part"] == "val") & table["patient_id"].str.startswith("b"), "train")
    found = {check.code: check for check in checks.run(rare, manifest)}["EQ003"]
    assert (found.answer, found.detail) == ("finding", "repeat 0 fold 0 val")
    empty = _moved(made, lambda table: table["part"] == "val", "train")
    assert {check.code: check.detail for check in checks.run(empty, manifest)}["EQ003"] == "a part is empty"


def _official(overlapping):
    """Twelve patients on the train side and four on the test side; the first few are on both."""
    patients = {f"p{number:02d}": (number % 2,) * 2 for number in range(16)}
    sides = {patient: ("train",) * 2 if number < 12 else ("test",) * 2 for number, patient in enumerate(patients)}
    for number in range(overlapping):
        sides[f"p{number:02d}"] = ("train", "test")
    return _manifest(patients, sides=sides)


def test_official_overlap_is_a_finding_with_its_count():
    manifest = _official(overlapping=3)
    made = splits.make(manifest, _settings(scheme="official"))
    found = checks.run(made, manifest)
    official = {check.code: check for check in found}["EQ-OFFICIAL"]
    assert official.answer == "finding"
    assert official.detail.startswith("3 patients are on both published sides")
    assert checks.finding([check.as_dict() for check in found], "EQ-OFFICIAL")
    assert not checks.finding([check.as_dict() for check in found], "EQ001")
    rows = made.round(0, 0)
    marked = rows.loc[checks.overlapping(rows), "image_id"].tolist()
    assert marked == ["p00/1.png", "p01/1.png", "p02/1.png"]


def test_official_sides_without_overlap_are_no_finding():
    manifest = _official(overlapping=0)
    made = splits.make(manifest, _settings(scheme="official"))
    assert {check.code: check.answer for check in checks.run(made, manifest)}["EQ-OFFICIAL"] == "none"
    assert not checks.overlapping(made.round(0, 0)).any()


@pytest.mark.parametrize("patient", ["p00", "p05"], ids=["also in test", "of the train side only"])
def test_official_leak_between_train_and_val_is_still_an_error(patient):
    manifest = _official(overlapping=1)
    if patient == "p00":  # a third image, so that train, val and test each hold one
        extra = manifest.table.iloc[:1].assign(image_id="p00/2.png", sha256="p00-2", official_split="train")
        manifest = Manifest(pd.concat([manifest.table, extra], ignore_index=True), manifest.meta)
    made = splits.make(manifest, _settings(scheme="official"))
    image = manifest.table.loc[
        (manifest.table["person"] == patient) & (manifest.table["official_split"] == "train"), "image_id"
    ].iloc[-1]
    now = made.table.set_index("image_id").loc[image, "part"]
    moved = _moved(made, lambda table: table["image_id"] == image, "val" if now == "train" else "train")
    with pytest.raises(LeakageError, match=rf"patient '{patient}' is in train \(1 images\) and val \(1 images\)"):
        checks.run(moved, manifest)


def test_plan_within_train_is_accepted():
    checks.plan_within_train(Plan.of([0, 9, 9]), 10)
    checks.plan_within_train(Plan.of([]), 0)


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([0, 10], 10),
        ([3, 99], 99),
        ([-1, 5], -1),
    ],
)
def test_plan_outside_train_is_a_leak(rows, shown):
    with pytest.raises(LeakageError, match=rf"EQ004: the plan draws row {shown}, outside the 10 train rows"):
        checks.plan_within_train(Plan.of(rows), 10)
