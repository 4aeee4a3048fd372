"""Parts in whole patients, whatever the manifest."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from equipoise.core import config
from equipoise.core.documents import SplitSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import PARTS, Manifest, Splits
from equipoise.core.text import counted
from equipoise.split import checks
from equipoise.split import stage as splits
from equipoise.split import strata as strata_
from fabricate.manifests import manifest_of, plain_manifest, published_folds, split_settings

ROOT = Path(__file__).resolve().parents[2]


def _part_of(made, repeat=0, fold=0):
    """Part by patient; fails when a patient has two."""
    parts = made.round(repeat, fold).groupby("patient_id")["part"].agg(set)
    assert (parts.map(len) == 1).all()
    return parts.map(lambda values: next(iter(values)))


def _shuffled(manifest, seed):
    order = np.random.default_rng(seed).permutation(len(manifest.table))
    return Manifest(
        manifest.table.iloc[order].reset_index(drop=True), manifest.meta, manifest.digest
    )


@dataclass(frozen=True)
class Case:
    """A generated manifest and the settings to split it by, with its patients, pictures and strata in numbers."""

    manifest: Manifest
    settings: config.Split

    @property
    def table(self):
        return self.manifest.table

    def parts(self, made):
        """Part of every image by round, int (num_rounds, num_images), in the order of the manifest."""
        table = made.table
        num_images = len(self.table)
        column_of = pd.Series(np.arange(num_images), index=self.table["image_id"])
        column = column_of.loc[table["image_id"]].to_numpy()
        num_folds = table["fold"].max() + 1
        row = (table["repeat"] * num_folds + table["fold"]).to_numpy()
        parts = np.full((row.max() + 1, num_images), -1)
        parts[row, column] = pd.Categorical(table["part"], categories=PARTS).codes
        return parts

    def patients(self):
        """Number of the patient of each image, and number of the stratum of each patient."""
        patient, _ = pd.factorize(self.table["person"])
        num_classes = len(self.manifest.classes)
        shows = np.zeros((patient.max() + 1, num_classes), dtype=int)
        shows[patient, self.table["label"]] = 1
        bit_of_class = 2 ** np.arange(num_classes)
        return patient, shows @ bit_of_class


@st.composite
def cases(draw, scheme=None):
    """Two or three classes, at least seven patients of each, some of several classes, copies, rows in any order."""
    num_classes = draw(st.integers(2, 3))
    # A patient's classes are the bits of a mask.
    masks = [2**label for label in range(num_classes) for _ in range(7)]
    masks += draw(st.lists(st.integers(1, 2**num_classes - 1), max_size=24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels_of_patient = []
    for mask in masks:
        labels = np.flatnonzero(mask >> np.arange(num_classes) & 1)
        num_images = max(len(labels), rng.integers(1, 5))
        labels_of_patient.append(np.resize(rng.permutation(labels), num_images))
    table = _images_of(labels_of_patient, num_classes, rng)
    meta = {
        "study": "made_up",
        "dataset": "made_up",
        "classes": list("abc"[:num_classes]),
        "positive_class": "b",
        "readings": ["person"],
    }
    shuffled = table.iloc[rng.permutation(len(table))]
    chosen = split_settings(
        scheme=scheme or draw(st.sampled_from(["holdout", "kfold"])),
        val_fraction=draw(fractions),
        test_fraction=draw(fractions),
        folds=draw(st.integers(2, 5)),
        repeats=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**31)),
    )
    return Case(Manifest(shuffled, meta, "digest"), chosen)


def _images_of(labels_of_patient, num_classes, rng):
    """A row for each label of each patient; a third of the images are copies inside patient and class."""
    num_patients = len(labels_of_patient)
    names = np.array([f"p{number}" for number in rng.permutation(num_patients)])
    images_of_patient = [len(labels) for labels in labels_of_patient]
    patient = np.repeat(np.arange(num_patients), images_of_patient)
    label = np.concatenate(labels_of_patient)
    image = np.array([f"i{number}" for number in range(len(label))])
    group = patient * num_classes + label
    _, first_of_group, group_of_image = np.unique(group, return_index=True, return_inverse=True)
    original = image[first_of_group[group_of_image]]
    is_copy = rng.random(len(label)) < 0.3
    return pd.DataFrame(
        {
            "image_id": image,
            "sha256": image,
            "picture": np.where(is_copy, original, image),
            "path": "",
            "label": label,
            "class_name": np.array(["a", "b", "c"])[label],
            "patient_id": names[patient],
            "person": names[patient],
            "width_px": 8,
            "height_px": 8,
            "bytes": 10,
            "grey_mean": 9.0,
            # Two of the first seven patients of every class are published as test.
            "official_split": np.where(patient % 7 < 2, "test", "train"),
        }
    )


#: 0.1 and 0.2 / 0.9 are the divisions 0.7 + 0.2 + 0.1, whose sum is not 1 in floating point.
fractions = st.one_of(st.sampled_from([0.1, 0.2 / 0.9, 1 / 3]), st.floats(0.02, 0.6))


def _spread(part, patient):
    """Images of each patient by part, int (num_patients, num_parts)."""
    counts = np.zeros((patient.max() + 1, len(PARTS)), dtype=int)
    np.add.at(counts, (patient, part), 1)
    return counts


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(cases())
def test_parts_are_whole_complete_and_stratified(case):
    made = splits.make(case.manifest, case.settings)
    kfold = case.settings.scheme == "kfold"
    folds = case.settings.folds if kfold else 1
    assert made.rounds() == [
        (repeat, fold) for repeat in range(case.settings.repeats) for fold in range(folds)
    ]
    # As many rows as images in each round, and every image found in each: the parts are everything, once.
    assert len(made.table) == len(case.table) * case.settings.repeats * folds
    parts = case.parts(made)
    assert parts.min() >= 0
    owner = case.table.set_index("image_id")["person"]
    assert (
        owner.loc[made.table["image_id"]].to_numpy() == made.table["patient_id"].to_numpy()
    ).all()
    patient, stratum = case.patients()
    picture = pd.factorize(case.table["picture"])[0]
    for part in parts:
        for group in (patient, picture):
            assert (np.count_nonzero(_spread(part, group), axis=1) == 1).all()
        _stratified(_spread(part, patient) > 0, stratum, case.settings)
    if kfold:
        for repeat in parts.reshape(case.settings.repeats, folds, -1):
            _even_folds(repeat == PARTS.index("test"), patient, stratum)


def _stratified(reached, stratum, chosen):
    """Every set of classes is divided within one patient of the target, and reaches each part if it can."""
    kfold = chosen.scheme == "kfold"
    test_fraction = 1 / chosen.folds if kfold else chosen.test_fraction
    for kind in np.unique(stratum):
        train, val, test = reached[stratum == kind].sum(axis=0)
        count = train + val + test
        assert abs(test - test_fraction * count) <= 1
        if kfold:
            assert val == 0
            if count >= chosen.folds:
                assert min(train, test) >= 1
            continue
        assert abs(val - chosen.val_fraction * (count - test)) <= 1
        if count >= 3:
            assert min(train, val, test) >= 1


def _even_folds(tested, patient, stratum):
    """The test parts of one repeat, boolean (num_folds, num_images), hold each image once and as many patients."""
    assert (tested.sum(axis=0) == 1).all()
    fold_of = np.empty(len(stratum), dtype=int)
    fold_of[patient] = tested.argmax(axis=0)
    for chosen in (fold_of, *(fold_of[stratum == kind] for kind in np.unique(stratum))):
        counts = np.bincount(chosen, minlength=len(tested))
        assert counts.max() - counts.min() <= 1


@settings(max_examples=100)
@given(cases(), st.integers(0, 2**32))
def test_row_order_does_not_matter_and_a_seed_repeats_its_split(case, order):
    other = _shuffled(case.manifest, order)
    one = splits.make(case.manifest, case.settings)
    two = splits.make(other, case.settings)
    np.testing.assert_array_equal(case.parts(one), case.parts(two))
    assert one.meta == two.meta
    assert two.round(0, 0)["image_id"].tolist() == other.table["image_id"].tolist()


@settings(max_examples=60)
@given(cases())
def test_another_seed_and_another_repeat_give_another_split(case):
    chosen = case.settings.model_copy(
        update={"repeats": 3, "val_fraction": 0.3, "test_fraction": 0.3}
    )
    drawn = [
        case.parts(
            splits.make(case.manifest, chosen.model_copy(update={"seed": chosen.seed + add}))
        )
        for add in (0, 1)
    ]
    for part in splits.make(case.manifest, chosen).parts[1:]:
        one, other = ((parts == PARTS.index(part)).reshape(3, -1) for parts in drawn)
        assert not np.array_equal(one, other)
        assert len(np.unique(one, axis=0)) > 1


@settings(max_examples=120)
@given(cases(scheme="official"), st.integers(1, 3), st.integers(0, 2**32))
def test_official_sides_are_exactly_the_published_ones(case, published, seed):
    rng = np.random.default_rng(seed)
    table = case.table
    sides = {"official_split": table["official_split"].to_numpy()}
    if published > 1:  # published folds overlap in their images and need not respect patients
        flipped = (sides["official_split"] == "train") & (rng.random((published, len(table))) < 0.1)
        sides = {
            f"official_split_{n + 1}": np.where(flipped[n], "test", sides["official_split"])
            for n in range(published)
        }
    table = table.drop(columns="official_split").assign(**sides)
    made = splits.make(
        Manifest(table, case.manifest.meta), case.settings.model_copy(update={"val_fraction": 0.2})
    )
    assert made.rounds() == [
        (repeat, fold) for repeat in range(case.settings.repeats) for fold in range(published)
    ]
    patient, _ = case.patients()
    for repeat, fold in made.rounds():
        part = made.round(repeat, fold)["part"].to_numpy()
        np.testing.assert_array_equal(part == "test", list(sides.values())[fold] == "test")
        code = pd.Categorical(part, categories=PARTS).codes
        spread = _spread(code, patient)
        assert (spread[:, :2].sum(axis=0) > 0).all()
        assert not ((spread[:, 0] > 0) & (spread[:, 1] > 0)).any(), (
            "a patient is in train and in val"
        )


def test_published_folds_are_taken_in_the_order_of_their_numbers():
    columns = []
    for tested_patient in range(10):
        words = ["train"] * 10
        words[tested_patient] = "test"
        columns.append(" ".join(words))
    manifest = published_folds(*columns)
    names = [f"official_split_{n}" for n in sorted(range(1, 11), key=str)]  # 1, 10, 2, ...
    others = manifest.table.drop(columns=names)
    shuffled = Manifest(others.join(manifest.table[names]), manifest.meta)
    made = splits.make(shuffled, split_settings(scheme="official", repeats=2))
    assert made.rounds() == [(repeat, fold) for repeat in range(2) for fold in range(10)]
    tested = made.table[made.table["part"] == "test"]
    expected = "p" + tested["fold"].astype(str)
    assert (tested["patient_id"] == expected).all()
    assert len(tested) == 2 * 10 * 2


def test_folds_are_stratified_no_worse_than_by_sklearn():
    """Shares of patients by class in each fold, against StratifiedGroupKFold on the same images."""
    ours, theirs = [], []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        count = 80
        kind = rng.choice(
            4, size=count, p=[0.6, 0.2, 0.1, 0.1]
        )  # the last shows the classes 0 and 1
        images = rng.integers(1, 5, size=count) * 2
        patient = np.repeat(np.arange(count), images)
        label = np.where(kind[patient] < 3, kind[patient], np.arange(len(patient)) % 2)
        rows = pd.DataFrame({"patient": [f"p{number:03d}" for number in patient], "label": label})
        sklearn = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(
            label, label, patient
        )
        other = np.empty(len(label), dtype=int)
        for fold, (_, test) in enumerate(sklearn):
            other[test] = fold
        for errors, fold in ((ours, strata_.assign_folds(rows, 5, [seed])), (theirs, other)):
            pairs = rows.assign(fold=fold).drop_duplicates(["patient", "label"])
            counts = np.zeros((5, 3))
            np.add.at(counts, (pairs["fold"].to_numpy(), pairs["label"].to_numpy()), 1)
            shares = (
                counts
                / pd.Series(fold)
                .groupby(patient)
                .first()
                .value_counts()
                .sort_index()
                .to_numpy()[:, None]
            )
            errors.append(np.abs(shares - counts.sum(axis=0) / count).max())
    print("largest error of a share, ours and scikit-learn:", np.mean(ours), np.mean(theirs))
    assert np.mean(ours) <= np.mean(theirs)
    assert np.mean(ours) < 0.06


@pytest.mark.parametrize(
    ("scheme", "tested"),
    [("holdout", ["a000", "a005", "b003"]), ("kfold", ["a001", "a005", "a007", "b000"])],
)
def test_draw_is_the_same_on_every_machine(scheme, tested):
    part = _part_of(
        splits.make(
            plain_manifest((8, 4)),
            split_settings(scheme=scheme, folds=3, test_fraction=0.25, seed=1),
        )
    )
    assert sorted(part.index[part == "test"]) == tested


# --- what cannot be split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "counts", "needed"),
    [
        ({"scheme": "holdout"}, (20, 2), 3),
        ({"scheme": "kfold", "folds": 5}, (20, 4), 5),
        ({"scheme": "kfold", "folds": 2}, (1, 9), 2),
    ],
)
def test_too_few_patients_are_refused_with_the_counts(changes, counts, needed):
    with pytest.raises(DataError) as error:
        splits.make(plain_manifest(counts), split_settings(**changes))
    assert str(error.value).startswith(
        f"split.scheme: {changes['scheme']} needs at least {needed} patients of every class, "
        f"found a {counts[0]}, b {counts[1]} (group_by: person)."
    )


def test_class_without_an_image_is_counted_too():
    manifest = manifest_of({f"p{number}": (0,) for number in range(9)})
    with pytest.raises(DataError, match="found a 9, b 0"):
        splits.make(manifest, split_settings())


def test_official_needs_patients_on_the_train_side():
    patients = {f"p{number}": (number % 2,) for number in range(12)}
    sides = {
        patient: ("train" if number in (0, 1, 2) else "test",)
        for number, patient in enumerate(patients)
    }
    with pytest.raises(DataError, match="on the published train side, found a 2, b 1"):
        splits.make(manifest_of(patients, sides=sides), split_settings(scheme="official"))


def test_official_without_published_sides_is_refused():
    with pytest.raises(
        ConfigError, match=r"dataset 'made_up' publishes no split\. Use holdout or kfold"
    ):
        splits.make(plain_manifest(), split_settings(scheme="official"))


@pytest.mark.parametrize(
    ("in_test", "text"),
    [
        ((), "holds no usable image: none of 24 images is test in column official_split"),
        ((0, 2, 4), r"lacks a class \(a 3, b 0\), so nothing can be compared on it"),
    ],
)
def test_official_sides_on_which_nothing_can_be_measured_are_refused(in_test, text):
    patients = {f"p{number}": (number % 2,) for number in range(24)}
    sides = {
        patient: ("test" if number in in_test else "train",)
        for number, patient in enumerate(patients)
    }
    with pytest.raises(DataError, match=text) as error:
        splits.make(manifest_of(patients, sides=sides), split_settings(scheme="official"))
    assert "use split.scheme: holdout or kfold" in str(error.value)


def test_one_test_patient_of_a_class_is_said():
    manifest = manifest_of({f"p{number}": (int(number < 3),) for number in range(43)})
    for scheme, is_said in (("holdout", True), ("kfold", False)):
        settings = split_settings(scheme=scheme, folds=3, repeats=1)
        made = splits.make(manifest, settings)
        summary = SplitSummary(
            study="made",
            splits="",
            manifest="",
            scheme=scheme,
            group_by="patient",
            patients=43,
            checks=[],
            rounds=splits.counts_reached(made, manifest),
        )
        text = splits.summary_text(summary)
        assert ("test has 1 patient of b in 1 of 1 round" in text) is is_said


def test_official_folds_each_need_patients_on_their_train_side():
    manifest = published_folds(
        "train train train train test test", "train test train test train test"
    )
    with pytest.raises(
        DataError, match="on the published train side of official_split_2, found a 3, b 0"
    ):
        splits.make(manifest, split_settings(scheme="official"))


@pytest.mark.parametrize(
    ("value", "shown"), [("", "nothing"), (None, "nothing"), ("validation", "'validation'")]
)
def test_image_without_a_published_side_is_refused(value, shown):
    manifest = published_folds("train test", "train test")
    manifest.table.loc[[1, 3], "official_split_2"] = value
    with pytest.raises(DataError) as error:
        splits.make(manifest, split_settings(scheme="official"))
    assert str(error.value) == (
        f"split.scheme is official, but 2 of 4 images of dataset 'made_up' are neither train nor test in column "
        f"official_split_2 (for example 'p0/1.png': {shown}). Complete the published list, leave these images out, or "
        f"use split.scheme: holdout or kfold."
    )


def test_image_without_a_patient_is_refused():
    manifest = plain_manifest((20, 8))
    manifest.table.loc[[4, 7], "person"] = None
    with pytest.raises(
        DataError,
        match=r"2 images have no patient in column 'person' .*, for example 'a002/0\.png'",
    ):
        splits.make(manifest, split_settings())


@pytest.mark.parametrize(
    ("changes", "fewest"),
    [
        ({"scheme": "kfold", "folds": 2}, 2),
        ({"scheme": "kfold", "folds": 3}, 3),
        ({"test_fraction": 0.5}, 3),
    ],
)
def test_fewest_allowed_patients_reach_every_part(changes, fewest):
    made = splits.make(plain_manifest((20, fewest)), split_settings(**changes))
    for repeat, fold in made.rounds():
        part = _part_of(made, repeat, fold)
        assert set(part[part.index.str.startswith("b")]) == set(made.parts)


# --- who is a patient ------------------------------------------------------------------------------------------------


def test_group_by_another_reading_keeps_its_groups_whole():
    manifest = plain_manifest((40, 30))
    made = splits.make(manifest, split_settings(group_by="site"))
    assert made.meta["group_by"] == "site"
    assert set(_part_of(made).index) == {f"site {digit}" for digit in range(10)}


def test_group_by_defaults_to_the_first_reading():
    assert splits.make(plain_manifest(), split_settings(group_by=None)).meta["group_by"] == "person"


@pytest.mark.parametrize(
    ("scheme", "group_by", "read"),
    [("official", None, "site"), ("official", "person", "person"), ("holdout", None, "person")],
)
def test_official_scheme_defaults_to_the_reading_of_the_published_split(scheme, group_by, read):
    patients = {f"p{number:02d}": (number % 2,) for number in range(30)}
    sides = {patient: ("test" if int(patient[1:]) % 10 < 4 else "train",) for patient in patients}
    plain = manifest_of(patients, sides=sides)
    manifest = Manifest(plain.table, {**plain.meta, "official_reading": "site"})
    assert (
        splits.make(manifest, split_settings(scheme=scheme, group_by=group_by)).meta["group_by"]
        == read
    )
    unstated = Manifest(plain.table, {**plain.meta, "official_reading": None})
    assert (
        splits.make(unstated, split_settings(scheme=scheme, group_by=None)).meta["group_by"]
        == "person"
    )


def test_unknown_group_by_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        splits.make(plain_manifest(), split_settings(group_by="persn"))
    assert str(error.value) == (
        "There is no reading of the patient 'persn' for dataset 'made_up'. Did you mean 'person'? Known: person, site."
    )


def test_patient_of_both_classes_stays_whole_and_is_drawn_among_its_like():
    patients = {f"p{number:02d}": (0, 1) for number in range(8)}
    part = _part_of(
        splits.make(manifest_of(patients), split_settings(test_fraction=0.25, val_fraction=0.5))
    )
    assert Counter(part) == {"test": 2, "val": 3, "train": 3}


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """The demo's settings with a holdout, and a manifest of 30 patients."""
    holdout = {"split.scheme": "holdout"}
    study = config.load_study("demo", config.read_params(ROOT), holdout, root=tmp_path)
    plain = plain_manifest((20, 10))
    Manifest(plain.table, {**plain.meta, "study": "demo"}).write(study.manifest_path)
    return study


def test_run_writes_the_split_and_the_counts_it_reached(study):
    made, summary = splits.run(study)
    summary_path = study.splits_path.with_suffix(".json")
    first = study.splits_path.read_bytes(), summary_path.read_bytes()
    assert Splits.read(study.splits_path).digest == made.digest == summary.splits
    assert made.meta["manifest"] == summary.manifest == Manifest.read(study.manifest_path).digest
    assert SplitSummary.read(summary_path).as_dict() == summary.as_dict()
    splits.run(study)
    assert (study.splits_path.read_bytes(), summary_path.read_bytes()) == first


def test_summary_holds_the_counts_and_the_answers(study):
    _, summary = splits.run(study)
    counts = summary.rounds[0]
    assert sum(counts.parts[part]["b"].patients for part in PARTS) == 10
    assert sum(counts.parts[part]["a"].images for part in PARTS) == 40
    tested = round(20 * study.settings.split.test_fraction)
    assert counts.parts["test"]["a"].patients == tested
    assert {name: sum(by_part.values()) for name, by_part in counts.strata.items()} == {
        "a": 20,
        "b": 10,
    }
    assert counts.strata["b"] == {part: counts.parts[part]["b"].patients for part in PARTS}
    assert [check.code for check in summary.checks] == [check.code for check in checks.CHECKS]


def test_text_says_the_counts_of_the_first_round_and_every_answer(study):
    _, summary = splits.run(study)
    lines = splits.summary_text(summary).splitlines()
    rounds = counted(len(summary.rounds), "round")
    assert lines[0] == f"{summary.scheme}, 30 patients by person, {rounds}"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == list(PARTS)
    test = summary.rounds[0].parts["test"]
    assert lines[3] == (
        f"  test: a {test['a'].images} images of {test['a'].patients} patients, "
        f"b {test['b'].images} images of {test['b'].patients} patients"
    )
    assert lines[4] == "  EQ001 patient on two sides: passed"
    assert "  EQ004 resampled row outside train: not applicable; no plan yet" in lines
    assert len(lines) == 1 + len(PARTS) + len(checks.CHECKS)


def test_counts_reached_are_those_of_the_images_for_every_round():
    label_sets = {"a": (0,), "b": (1,), "m": (0, 1)}
    patients = {}
    for number in range(36):
        letter = "abm"[number % 3]
        patients[f"{letter}{number:02d}"] = label_sets[letter] * 2
    manifest = manifest_of(patients)
    made = splits.make(manifest, split_settings(scheme="kfold", folds=4, repeats=2))
    rounds = splits.counts_reached(made, manifest)
    assert [(counts.repeat, counts.fold) for counts in rounds] == made.rounds()
    labels = manifest.table[["image_id", "label"]]
    for counts in rounds:
        rows = made.round(counts.repeat, counts.fold).merge(labels)
        assert list(counts.parts) == ["train", "test"]
        for part in counts.parts:
            _same_counts(counts, part, rows[rows["part"] == part])


def _same_counts(counts, part, inside):
    """The counts of one part are those of its rows; a patient's name begins with its stratum."""
    for label, name in enumerate("ab"):
        images = inside[inside["label"] == label]
        assert counts.parts[part][name].images == len(images)
        assert counts.parts[part][name].patients == images["patient_id"].nunique()
    strata = inside["patient_id"].str[0]
    assert set(counts.strata) == {"a", "b", "a+b"}
    for letter, name in (("a", "a"), ("b", "b"), ("m", "a+b")):
        patients = inside["patient_id"][strata == letter]
        assert counts.strata[name][part] == patients.nunique()
