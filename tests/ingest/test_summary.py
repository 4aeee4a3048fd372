"""What `ingest` shows: counts with their roles, remarks only where there is something to say."""

from equipoise.core.documents import ClassCount, IngestSummary
from equipoise.ingest.quarantine import Quarantined
from equipoise.ingest.summary import summary_text


def summary(**changes) -> IngestSummary:
    plain = IngestSummary(
        study="lungs",
        dataset="lungs",
        classes=["clear", "opacity"],
        positive_class="opacity",
        patient_ids=True,
        source="s",
        licence="l",
        citation="c",
        manifest="0",
        raw="1",
        code="2",
        images=400,
        patients=90,
        pseudonymised=False,
        files_seen=400,
        other_files_ignored=2,
        left_out={".csv": 1, "hidden": 1},
        selection="",
        not_selected=0,
        quarantined=0,
        near_copies=0,
        alike=0,
        label_conflicts=0,
        flagged={"tiny": 0, "blank": 0, "colour": 0},
        by_class={
            "clear": ClassCount(images=350, patients=80, image_share=0.875),
            "opacity": ClassCount(images=50, patients=10, image_share=0.125),
        },
        minority_classes=["opacity"],
        imbalance_ratio=7.0,
        completeness="complete",
    )
    return plain.model_copy(update=changes)


def test_a_plain_study_has_counts_and_no_remarks():
    assert summary_text(summary(), []).split("\n") == [
        "400 usable images of 90 patients (complete)",
        "  clear: 350 images (87.5 %), 80 patients",
        "  opacity (positive, minority): 50 images (12.5 %), 10 patients",
        "  imbalance 1:7.0; 2 other files ignored: 1 .csv, 1 hidden",
        "  0 files quarantined",
    ]


def test_what_is_special_is_said():
    special = summary(
        selection="magnification=40X",
        not_selected=7,
        near_copies=3,
        pseudonymised=True,
        patient_ids=False,
        flagged={"tiny": 2, "blank": 0, "colour": 1},
    )
    assert summary_text(special, []).split("\n")[4:-1] == [
        "  only magnification=40X: 7 images left out",
        "  3 near copies stay with the patient of the picture they resemble",
        "  ids are keyed hashes; the way back lies in data/local/lungs.csv, on this machine only",
        "  no patient ids: every image counts as a patient, and intervals will be per image",
        "  kept, and worth a look: 2 tiny, 1 colour",
    ]


def test_names_with_line_breaks_stay_on_their_line():
    text = summary_text(
        summary(), [Quarantined("a\nb\x1b[31m.png", "unreadable: the file is empty")]
    )
    assert text.split("\n")[-1] == r"    a\nb\x1b[31m.png: unreadable: the file is empty"


def test_ten_quarantined_files_are_named_and_the_others_counted():
    quarantined = [Quarantined(f"{number}.png", "unreadable") for number in range(12)]
    ten = summary_text(summary(), quarantined[:10]).split("\n")[4:]
    assert ten[0] == "  10 files quarantined:"
    assert ten[1:] == [f"    {number}.png: unreadable" for number in range(10)]
    twelve = summary_text(summary(), quarantined).split("\n")[4:]
    assert twelve[0] == "  12 files quarantined:"
    assert twelve[1:-1] == ten[1:]
    assert twelve[-1] == "    and 2 more in data/manifest/lungs.quarantine.csv"


def test_pictures_that_look_alike_and_were_not_joined_are_said():
    text = summary_text(summary(alike=100), [])
    assert "100 pictures (25.0 % of the files) look nearly alike in groups too large" in text
    assert "ingest.near_copies: off" in text
