"""The coded checks: a leak is an error that nothing silences, everything else is told."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from conftest import REPO
from equipoise.core.errors import DataError, LeakageError
from equipoise.core.records import Manifest, Splits
from equipoise.split import checks
from equipoise.split import stage as splits
from equipoise.strategies import base
from equipoise.strategies.base import Plan
from fabricate.manifests import manifest_of, moved, plain_manifest, published_folds, split_settings


def _answers(made, manifest):
    return {check.code: check for check in checks.check_split(made, manifest)}


def with_meta(manifest, **meta):
    return Manifest(manifest.table, {**manifest.meta, **meta}, manifest.digest)


def test_patient_moved_by_hand_is_a_leak_told_with_its_images():
    manifest = plain_manifest(images=4)
    made = splits.make(manifest, split_settings())
    patient = made.table.loc[made.table["part"] == "train", "patient_id"].iloc[0]
    edited = moved(made, lambda table: table["image_id"] == f"{patient}/3.png", "test")
    with pytest.raises(LeakageError) as error:
        checks.check_split(edited, manifest)
    assert str(error.value) == (
        f"EQ001: patient '{patient}' is in train (3 images) and test (1 images) of data/splits/made_up.parquet, "
        f'repeat 0, fold 0. A patient must be in exactly one part. Run "equipoise split"; if the file was edited '
        f'by hand, restore it with "dvc checkout".'
    )


def test_leak_in_a_later_fold_names_that_fold():
    manifest = plain_manifest((20, 8))
    made = splits.make(manifest, split_settings(scheme="kfold", folds=4))
    last = made.round(0, 3)
    image = last.loc[last["part"] == "train", "image_id"].iloc[0]
    edited = moved(made, lambda table: (table["fold"] == 3) & (table["image_id"] == image), "test")
    with pytest.raises(
        LeakageError,
        match=r"is in train \(1 images\) and test \(1 images\) of .*, repeat 0, fold 3\.",
    ):
        checks.check_split(edited, manifest)


def test_picture_on_two_sides_is_a_leak_even_between_patients():
    manifest = plain_manifest(images=1)
    made = splits.make(manifest, split_settings())
    train, test = (
        made.table.loc[made.table["part"] == part, "image_id"].iloc[0] for part in ("train", "test")
    )
    table = manifest.table.copy()
    table.loc[table["image_id"].isin([train, test]), "picture"] = "0123456789abcdef"
    with pytest.raises(
        LeakageError,
        match=r"^EQ002: picture '0123456789ab\.\.\.' is in train \(1 images\) and test \(1 images\)",
    ):
        checks.check_split(made, Manifest(table, manifest.meta))


def test_split_of_another_manifest_is_refused():
    made = splits.make(plain_manifest((20, 8)), split_settings())
    with pytest.raises(
        LeakageError, match="split of study 'made_up' holds other images than its manifest"
    ):
        checks.check_split(made, plain_manifest((20, 9)))


@pytest.mark.parametrize("fault", ["dropped", "twice", "part", "val"])
def test_round_that_is_no_division_of_the_manifest_is_refused(fault):
    manifest = plain_manifest((20, 8))
    made = splits.make(manifest, split_settings(scheme="kfold", folds=4))
    table = made.table
    if fault == "dropped":
        table = table.drop(index=0)
    elif fault == "twice":
        table = pd.concat([table, table.iloc[:1]])
    else:
        # A val part in k-fold is one that an older version drew.
        name = "val" if fault == "val" else "validation"
        table = table.assign(part=np.where(table.index == 0, name, table["part"]))
    with pytest.raises(DataError):
        checks.check_split(Splits(table, made.meta), manifest)


def test_class_absent_from_a_part_is_a_finding():
    manifest = plain_manifest((20, 8))
    made = splits.make(manifest, split_settings())
    assert {check.code: check.answer for check in checks.check_split(made, manifest)}[
        "EQ003"
    ] == "passed"
    rare = moved(
        made,
        lambda table: (table["part"] == "val") & table["patient_id"].str.startswith("b"),
        "train",
    )
    found = _answers(rare, manifest)["EQ003"]
    assert (found.answer, found.detail) == ("failed", "no b in val of repeat 0, fold 0")
    empty = moved(made, lambda table: table["part"] == "val", "train")
    assert _answers(empty, manifest)["EQ003"].detail == "no image in val of repeat 0, fold 0"


def _official(overlapping):
    """Twelve patients on the train side and four on the test side; the first few are on both."""
    patients = {f"p{number:02d}": (number % 2,) * 2 for number in range(16)}
    sides = {
        patient: ("train",) * 2 if number < 12 else ("test",) * 2
        for number, patient in enumerate(patients)
    }
    for number in range(overlapping):
        sides[f"p{number:02d}"] = ("train", "test")
    return manifest_of(patients, sides=sides)


def test_official_overlap_is_a_finding_with_its_count():
    manifest = _official(overlapping=3)
    made = splits.make(manifest, split_settings(scheme="official"))
    found = checks.check_split(made, manifest)
    official = {check.code: check for check in found}["EQ-OFFICIAL"]
    assert official.answer == "failed"
    assert official.detail == (
        "3 patients are on both published sides; results are also given without the shared rows. "
        + ", ".join(
            f"patient p0{number} in train (1 images) and test (1 images)" for number in range(3)
        )
    )
    assert checks.finding([check.as_dict() for check in found], "EQ-OFFICIAL")
    assert not checks.finding([check.as_dict() for check in found], "EQ001")
    rows = made.round(0, 0)
    marked = rows.loc[
        checks.overlapping(rows, manifest.table["picture"].to_numpy()), "image_id"
    ].tolist()
    assert marked == ["p00/1.png", "p01/1.png", "p02/1.png"]


def test_official_sides_without_overlap_are_no_finding():
    manifest = _official(overlapping=0)
    made = splits.make(manifest, split_settings(scheme="official"))
    assert {check.code: check.answer for check in checks.check_split(made, manifest)}[
        "EQ-OFFICIAL"
    ] == "passed"
    assert not checks.overlapping(made.round(0, 0), manifest.table["picture"].to_numpy()).any()


@pytest.mark.parametrize("patient", ["p00", "p05"], ids=["also in test", "of the train side only"])
def test_official_leak_between_train_and_val_is_still_an_error(patient):
    manifest = _official(overlapping=1)
    if patient == "p00":  # a third image, so that train, val and test each hold one
        extra = manifest.table.iloc[:1].assign(
            image_id="p00/2.png", sha256="p00-2", picture="p00-2", official_split="train"
        )
        manifest = Manifest(pd.concat([manifest.table, extra], ignore_index=True), manifest.meta)
    made = splits.make(manifest, split_settings(scheme="official"))
    image = manifest.table.loc[
        (manifest.table["person"] == patient) & (manifest.table["official_split"] == "train"),
        "image_id",
    ].iloc[-1]
    now = made.table.set_index("image_id").loc[image, "part"]
    edited = moved(
        made, lambda table: table["image_id"] == image, "val" if now == "train" else "train"
    )
    with pytest.raises(
        LeakageError,
        match=rf"^EQ001: patient '{patient}' is in train \(1 images\) and val \(1 images\)",
    ):
        checks.check_split(edited, manifest)


def test_plan_within_train_is_accepted():
    base.plan_within_train(Plan.of([0, 9, 9]), 10)
    base.plan_within_train(Plan.of([]), 0)


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([0, 10], 10),
        ([3, 99], 99),
        ([-1, 5], -1),
    ],
)
def test_plan_outside_train_is_a_leak(rows, shown):
    with pytest.raises(
        LeakageError, match=rf"EQ004: the plan draws row {shown}, outside the 10 train rows"
    ):
        base.plan_within_train(Plan.of(rows), 10)


# --- what a check declares --------------------------------------------------------------------------------------------


def test_every_check_has_a_code_of_its_own_a_title_and_a_question():
    codes = [check.code for check in checks.CHECKS]
    assert sorted(set(codes)) == sorted(codes)
    for check in checks.CHECKS:
        assert check.title
        assert check.question.endswith("?")


def test_every_check_stands_in_the_documentation():
    page = (REPO / "docs/checks.md").read_text(encoding="utf-8")
    for check in checks.CHECKS:
        assert f"| {check.code} |" in page


def test_answer_is_plain_data_in_one_order_and_comes_back():
    answer = checks.Check("EQ003", "class absent from a part", "failed", "no b in val")
    plain = answer.as_dict()
    assert list(plain) == ["code", "name", "answer", "detail"]
    assert checks.finding([plain], "EQ003")
    assert checks.finding([answer], "EQ003")
    assert not checks.finding([answer], "EQ001")


# --- the list of answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["holdout", "kfold", "official"])
def test_every_check_is_listed_in_one_order(scheme):
    manifest = _official(overlapping=0)
    found = checks.check_split(splits.make(manifest, split_settings(scheme=scheme)), manifest)
    assert [check.code for check in found] == [
        *(f"EQ00{number}" for number in range(1, 7)),
        "EQ009",
        "EQ-OFFICIAL",
    ]
    assert [check.name for check in found] == [check.title for check in checks.CHECKS]
    assert {check.answer for check in found} <= {"failed", "passed", "not applicable"}
    assert (found[3].answer, found[3].detail) == ("not applicable", "no plan yet")


def test_without_patient_ids_a_patient_cannot_be_on_two_sides():
    manifest = with_meta(plain_manifest(images=1), patient_ids=False)
    made = splits.make(manifest, split_settings())
    assert _answers(made, manifest)["EQ001"].answer == "not applicable"
    twice = manifest.table.assign(person=manifest.table["person"].replace("a001", "a000"))
    joined = Manifest(twice, manifest.meta)
    own = splits.make(joined, split_settings())
    now = own.table.set_index("image_id")["part"]["a000/0.png"]
    edited = moved(
        own, lambda table: table["image_id"] == "a001/0.png", "val" if now == "train" else "train"
    )
    with pytest.raises(LeakageError, match=r"^EQ001: patient 'a000'"):
        checks.check_split(edited, joined)


def test_patient_renamed_in_the_split_does_not_hide_a_leak():
    manifest = plain_manifest(images=4)
    made = splits.make(manifest, split_settings())
    image = made.table.loc[made.table["part"] == "train", "image_id"].iloc[0]
    table = moved(made, lambda table: table["image_id"] == image, "test").table
    table.loc[table["image_id"] == image, "patient_id"] = "somebody else"
    with pytest.raises(
        LeakageError, match=rf"^EQ001: .* image '{image}' is of patient 'somebody else'"
    ):
        checks.check_split(Splits(table, made.meta), manifest)


def test_rows_of_a_split_in_another_order_are_the_same_split():
    manifest = plain_manifest((20, 8))
    made = splits.make(manifest, split_settings(scheme="kfold", folds=4))
    order = np.random.default_rng(1).permutation(len(made.table))
    shuffled = Splits(made.table.iloc[order].reset_index(drop=True), made.meta)
    assert checks.check_split(shuffled, manifest) == checks.check_split(made, manifest)
    assert splits.counts_reached(shuffled, manifest) == splits.counts_reached(made, manifest)


# --- EQ004 -----------------------------------------------------------------------------------------------------------


def _written(made, part="train"):
    rows = made.table[made.table["part"] == part]
    plan = pd.concat([rows, rows])[["image_id", "repeat", "fold"]].assign(seed=0, view=0)
    return plan.reset_index(drop=True)


def test_written_plan_of_train_rows_is_accepted():
    made = splits.make(plain_manifest((20, 8)), split_settings(scheme="kfold", folds=4))
    plan = _written(made)
    check = checks.written_plan_within_train(plan, made)
    assert (check.code, check.answer) == ("EQ004", "passed")
    assert check.detail == f"{len(plan)} draws, all of train rows"


@pytest.mark.parametrize("part", ["val", "test"])
def test_written_plan_with_one_row_of_another_part_is_a_leak(part):
    made = splits.make(plain_manifest((20, 8)), split_settings(repeats=3))
    stray = made.round(2, 0).query("part == @part")["image_id"].iloc[0]
    plan = _written(made)
    place = plan.index[plan["repeat"] == 2][5]
    plan.loc[place, "image_id"] = stray
    with pytest.raises(LeakageError) as error:
        checks.written_plan_within_train(plan, made)
    assert str(error.value).startswith(
        f"EQ004: the plan draws image '{stray}' (view 0, seed 0), which is in {part} of data/splits/made_up.parquet, "
        f"repeat 2, fold 0; 1 of its {(plan['repeat'] == 2).sum()} draws there are outside train."
    )


def test_written_plan_with_a_test_row_of_one_fold_is_a_leak_though_it_is_train_in_another():
    made = splits.make(plain_manifest((20, 8)), split_settings(scheme="kfold", folds=4))
    stray = made.round(0, 2).query("part == 'test'")["image_id"].iloc[0]
    assert (made.round(0, 1).set_index("image_id")["part"] == "train")[stray]
    plan = _written(made)
    plan.loc[plan.index[plan["fold"] == 2][5], "image_id"] = stray
    with pytest.raises(LeakageError, match=f"'{stray}'.* which is in test of .*, fold 2; 1 of"):
        checks.written_plan_within_train(plan, made)


@pytest.mark.parametrize(
    "change", [{"image_id": "nobody.png"}, {"fold": 9}], ids=["image", "round"]
)
def test_written_plan_of_an_unknown_image_or_round_is_a_leak(change):
    made = splits.make(plain_manifest((20, 8)), split_settings())
    with pytest.raises(LeakageError, match=r"EQ004: .* which is in no part of"):
        checks.written_plan_within_train(_written(made).iloc[:3].assign(**change), made)


# --- EQ005 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "mixed", "detail"),
    [
        ({}, 2, "a+b: 2 patients for 3 parts"),
        ({}, 1, "a+b: 1 patient for 3 parts"),
        ({}, 3, ""),
        ({"scheme": "kfold", "folds": 4}, 3, "a+b: 3 patients for 4 folds"),
        ({"scheme": "kfold", "folds": 2}, 1, "a+b: 1 patient for 2 folds"),
        ({"scheme": "kfold", "folds": 2}, 2, ""),
        ({"scheme": "kfold", "folds": 4}, 4, ""),
    ],
)
def test_stratum_too_small_for_the_parts_is_a_finding(changes, mixed, detail):
    patients = {f"{'ab'[n % 2]}{n:02d}": (n % 2,) for n in range(20)} | {
        f"m{n}": (0, 1) for n in range(mixed)
    }
    manifest = manifest_of(patients)
    made = splits.make(manifest, split_settings(**changes))
    check = _answers(made, manifest)["EQ005"]
    assert (check.answer, check.detail) == ("failed" if detail else "passed", detail)
    # What is no finding does reach every part of every round, and what is one does not.
    own = made.table[made.table["patient_id"].str.startswith("m")]
    reached = own.groupby(["repeat", "fold"])["part"].nunique().reindex(made.rounds(), fill_value=0)
    assert (reached == len(made.parts)).all() == (not detail)


def test_official_strata_are_counted_on_the_published_train_side():
    manifest = published_folds(
        "train train train train test test", "train train train test train test"
    )
    table = manifest.table.copy()
    table.loc[table.index[table["person"] == "p2"][0], "label"] = 1  # p2 shows both classes
    manifest = Manifest(table, manifest.meta)
    made = splits.make(manifest, split_settings(scheme="official"))
    detail = _answers(made, manifest)["EQ005"].detail.split("; ")
    assert "fold 1: published train side, a+b: 1 patient for 2 parts" in detail
    assert "fold 2: published train side, b: 1 patient for 2 parts" in detail


# --- EQ006 -----------------------------------------------------------------------------------------------------------


def test_picture_under_two_classes_is_a_finding_unless_vouched_for():
    patients = {f"{'ab'[n % 2]}{n:02d}": (n % 2,) * 2 for n in range(20)} | {
        f"m{n}": (0, 1) for n in range(3)
    }
    plain = manifest_of(patients)
    table = plain.table.copy()
    table.loc[table["person"].isin(["a00", "m0"]), "picture"] = "one of several"
    table.loc[table["person"] == "a00", "picture"] = "same class"  # a copy is no conflict
    manifest = Manifest(table, plain.meta)
    made = splits.make(manifest, split_settings())
    check = _answers(made, manifest)["EQ006"]
    assert (check.answer, check.detail) == (
        "failed",
        "1 picture under two classes: 'm0/0.png' (a) and 'm0/1.png' (b)",
    )
    assert _answers(made, with_meta(manifest, trusted=["m0/0.png"]))["EQ006"].answer == "failed"
    vouched = _answers(made, with_meta(manifest, trusted=["m0/0.png", "m0/1.png"]))["EQ006"]
    assert (vouched.answer, vouched.detail) == (
        "passed",
        "1 picture under two classes, vouched for",
    )
    assert _answers(made, plain)["EQ006"] == checks.Check("EQ006", "label conflict", "passed")


@pytest.mark.parametrize(
    ("count", "detail"), [(0, ""), (1, "1 file is quarantined"), (66, "66 files are quarantined")]
)
def test_quarantined_label_conflicts_are_a_finding(count, detail):
    manifest = with_meta(plain_manifest(), label_conflicts=count)
    check = _answers(splits.make(manifest, split_settings()), manifest)["EQ006"]
    assert check.answer == ("failed" if count else "passed")
    assert check.detail == (
        f"{detail} until their label is decided, see the quarantine list" if count else ""
    )


# --- EQ009 -----------------------------------------------------------------------------------------------------------


def test_patient_with_more_than_a_third_of_a_class_is_a_finding():
    patients = {f"a{number}": (0, 0) for number in range(12)}
    patients |= {f"b{number}": (1,) for number in range(12)}
    patients["unknown"] = (0,) * 13 + (1,)
    manifest = manifest_of(patients)
    made = splits.make(manifest, split_settings(scheme="kfold", folds=2, repeats=2))
    answer = _answers(made, manifest)["EQ009"]
    assert answer.answer == "failed"
    assert answer.detail.startswith("patient 'unknown' has 13 of 37 images (35 %) of class a; ")
    assert "of class b" not in answer.detail, "1 of 13 images"
    in_test = made.table[made.table["part"] == "test"].groupby(["repeat", "fold"])["patient_id"]
    share = in_test.agg(lambda ids: (ids == "unknown").mean()).max()
    assert f"({100 * share:.0f} %) of test in repeat" in answer.detail
    assert "map it to nothing (ingest.aliases: {ID: ''})" in answer.detail


@pytest.mark.parametrize(
    ("images", "giants"),
    [
        ((2, 2, 2), 0),  # a third exactly
        ((3, 2, 2), 1),
        ((5, 1, 1), 1),
        ((2, 2, 1), 0),  # neither of the two weighs more than the other
    ],
)
def test_a_giant_has_more_than_a_third_and_more_than_the_others(images, giants):
    patients = {f"a{number}": (0,) * count for number, count in enumerate(images)}
    patients |= {f"b{number}": (1,) * 3 for number in range(9)}
    manifest = manifest_of(patients)
    made = splits.make(manifest, split_settings())
    assert _answers(made, manifest)["EQ009"].detail.count("of class a") == giants


def test_a_patient_alone_in_a_part_is_a_giant():
    manifest = plain_manifest((20, 8))
    made = splits.make(manifest, split_settings())
    in_val = made.table.loc[made.table["part"] == "val", "patient_id"]
    others = in_val[in_val != in_val.iloc[0]]
    alone = moved(made, lambda table: table["patient_id"].isin(others), "train")
    assert _answers(alone, manifest)["EQ009"].detail.startswith(
        f"patient '{in_val.iloc[0]}' has 2 of 2 images (100 %) of val in repeat 0, fold 0. Where such"
    )


def test_patients_of_one_size_are_no_giants():
    even = plain_manifest((20, 8))
    made = splits.make(even, split_settings(scheme="kfold", folds=8))
    assert _answers(made, even)["EQ009"].answer == "passed"


# --- EQ-OFFICIAL -----------------------------------------------------------------------------------------------------


def test_official_overlap_names_the_published_fold_and_the_images_on_each_side():
    manifest = published_folds(
        "train train train train test test", "train train train train test test"
    )
    table = manifest.table.copy()
    table.loc[table["image_id"] == "p1/1.png", "official_split_2"] = "test"
    manifest = Manifest(table, manifest.meta)
    made = splits.make(manifest, split_settings(scheme="official"))
    answers = _answers(made, manifest)
    assert answers["EQ-OFFICIAL"].detail == (
        "1 patient is on both published sides; results are also given without the shared rows. "
        "fold 2: patient p1 in train (1 images) and test (1 images)"
    )
    assert answers["EQ001"].detail == "none inside the published train side; see EQ-OFFICIAL"
    pictures = manifest.table["picture"].to_numpy()
    marked = {fold: checks.overlapping(made.round(0, fold), pictures).sum() for fold in (0, 1)}
    assert marked == {0: 0, 1: 1}


def test_official_overlap_names_the_first_few_and_counts_the_rest():
    manifest = _official(overlapping=7)
    detail = _answers(splits.make(manifest, split_settings(scheme="official")), manifest)[
        "EQ-OFFICIAL"
    ].detail
    assert detail.startswith("7 patients are on both published sides")
    assert Counter(detail.split())["patient"] == 4
    assert detail.endswith(", and 3 more")


def test_picture_on_both_published_sides_is_a_finding_and_its_test_rows_are_marked():
    plain = _official(overlapping=1)
    table = plain.table.copy()
    table.loc[table["image_id"].isin(["p05/0.png", "p15/1.png"]), "picture"] = "0123456789abcdef"
    table.loc[table["person"] == "p00", "picture"] = "only of a patient who is told of already"
    manifest = Manifest(table, plain.meta)
    made = splits.make(manifest, split_settings(scheme="official"))
    detail = _answers(made, manifest)["EQ-OFFICIAL"].detail
    assert detail.startswith("1 patient and 1 picture are on both published sides")
    assert detail.endswith("picture 0123456789ab... in train (1 images) and test (1 images)")
    rows = made.round(0, 0)
    marked = rows.loc[checks.overlapping(rows, table["picture"].to_numpy()), "image_id"]
    assert marked.tolist() == ["p00/1.png", "p15/1.png"]


def test_picture_in_train_and_val_of_an_official_split_is_an_error():
    plain = _official(overlapping=0)
    made = splits.make(plain, split_settings(scheme="official"))
    train, val = (
        made.table.loc[made.table["part"] == part, "image_id"].iloc[0] for part in ("train", "val")
    )
    table = plain.table.copy()
    table.loc[table["image_id"].isin([train, val]), "picture"] = "0123456789abcdef"
    with pytest.raises(
        LeakageError, match=r"^EQ002: picture '0123456789ab\.\.\.' is in train .* and val"
    ):
        checks.check_split(made, Manifest(table, plain.meta))


def test_split_that_left_the_published_sides_is_refused():
    manifest = _official(overlapping=0)
    made = splits.make(manifest, split_settings(scheme="official"))
    edited = moved(made, lambda table: table["patient_id"] == "p15", "train")
    with pytest.raises(
        DataError, match=r"does not keep the published sides \(official_split\): 2 images"
    ):
        checks.check_split(edited, manifest)
    other_fold = Splits(made.table.assign(fold=1), made.meta)
    with pytest.raises(DataError, match="no such fold"):
        checks.check_split(other_fold, manifest)
