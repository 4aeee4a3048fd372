"""Parts of the test rows, against scikit-learn on the rows of the part."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from equipoise.core import records
from equipoise.evaluation import subgroups
from fabricate import made

SETTINGS = made.settings()


@pytest.fixture
def described():
    """120 images of two classes with a magnification (both classes in each) and a subtype (one class in each)."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 60)
    people = np.array([f"p{index // 3}" for index in range(120)])
    given = made.predictions(rng.normal(size=120) + 1.0 * labels, labels, people, threshold=0.4)
    table = pd.DataFrame(
        {
            "image_id": given.table["image_id"],
            "label": labels,
            "class_name": "x",
            "patient_id": people,
        }
    )
    table = table.assign(
        sha256=table["image_id"],
        picture=table["image_id"],
        path="",
        width_px=1,
        height_px=1,
        bytes=1,
    )
    subtype = np.where(labels == 0, "none", np.where(np.arange(120) < 75, "virus", "bacteria"))
    table = table.assign(
        grey_mean=1.0, magnification=np.where(np.arange(120) % 2, "40X", "100X"), subtype=subtype
    )
    table = table.assign(
        official_split=table["magnification"], patient=table["magnification"], same="one"
    )
    return given, records.Manifest(
        table, {"classes": ["clear", "opacity"], "readings": ["patient"]}
    )


def test_subgroups_of_both_classes_are_the_metrics_of_their_rows(described):
    given, manifest = described
    groups = {row.value: row for row in subgroups.subgroups(given, manifest, SETTINGS.compare, 0.9)}
    assert list(groups) == ["100X", "40X", "bacteria", "none", "virus"]
    row, rows = groups["40X"], given.table[manifest.table["magnification"] == "40X"]
    assert row.column == "magnification"
    assert row.auroc.value == pytest.approx(sk.roc_auc_score(rows["label"], rows["prob_opacity"]))
    decided = rows["calibrated_opacity"] >= 0.4
    assert row.sensitivity.value == pytest.approx(sk.recall_score(rows["label"], decided), abs=1e-6)
    assert row.specificity.value == pytest.approx(
        sk.recall_score(rows["label"], decided, pos_label=0), abs=1e-6
    )
    right = (
        ((rows["prob_opacity"] >= 0.5) == rows["label"]).groupby(rows["patient_id"]).mean().mean()
    )
    assert row.patient_recognition_rate.value == pytest.approx(right, abs=1e-6)
    assert (row.images, row.patients, row.few, row.against) == (60, 40, False, "")
    assert row.patients_per_class == {"clear": 20, "opacity": 20}


def test_a_subgroup_of_one_class_is_ranked_against_all_images_of_the_other(described):
    given, manifest = described
    groups = {row.value: row for row in subgroups.subgroups(given, manifest, SETTINGS.compare, 0.9)}
    virus, rows = groups["virus"], given.table[manifest.table["subtype"].isin(["virus", "none"])]
    assert virus.auroc.value == pytest.approx(sk.roc_auc_score(rows["label"], rows["prob_opacity"]))
    assert virus.against == "all of clear"
    assert (virus.images, virus.patients, virus.few) == (15, 5, True)
    own = rows[rows["label"] == 1]
    assert virus.sensitivity.value == pytest.approx(
        (own["calibrated_opacity"] >= 0.4).mean(), abs=1e-6
    )
    assert virus.specificity is None
    assert virus.patient_recognition_rate is None
    assert groups["none"].sensitivity is None
    assert groups["none"].specificity.low < groups["none"].specificity.value


def test_each_of_three_classes_stands_against_the_rest():
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 3
    given = made.predictions(
        rng.normal(size=(60, 3)) + np.eye(3)[labels], labels, classes=("a", "b", "c")
    )
    found = subgroups.per_class(given, SETTINGS.compare, 0.9)
    decided = given.probabilities("prob").argmax(axis=1)
    for label, name in enumerate("abc"):
        auroc = found[name]["free"]["auroc"]
        assert auroc.value == pytest.approx(
            sk.roc_auc_score(labels == label, given.probabilities("prob")[:, label])
        )
        assert auroc.low < auroc.value < auroc.high
        recall = sk.recall_score(labels == label, decided == label)
        assert found[name]["raw"]["sensitivity"].value == pytest.approx(recall, abs=1e-6)
    of_two = made.predictions(rng.normal(size=60), labels % 2)
    assert subgroups.per_class(of_two, SETTINGS.compare, 0.9) == {}
