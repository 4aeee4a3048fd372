"""The model card: every number is a file's, what no file holds is said, and names stay text."""

import re
from types import SimpleNamespace

import pytest
from sklearn.metrics import confusion_matrix

from equipoise.compare import card
from equipoise.core import config, documents, files, records
from equipoise.evaluation import intervals, subgroups
from fabricate import comparisons, made

SECTIONS = (
    *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
    *("Quantitative analyses", "Ethical considerations", "Caveats", "Versions"),
)


@pytest.fixture
def study(tmp_path, monkeypatch) -> config.Study:
    monkeypatch.chdir(tmp_path)
    made_up = made.study(tmp_path)
    folder = made.result(made_up, "oversample")
    predictions = records.Predictions.read(folder / "predictions.parquet")
    manifest = records.Manifest.read(made_up.manifest_path)
    settings, floor = made_up.settings.compare, made_up.settings.tune.sensitivity_floor
    table = intervals.evaluate(predictions, settings, floor).table()
    summary = documents.ScenarioSummary.read(folder / "metrics.json").as_dict()
    summary["metrics"] = table
    summary["settings"] = made_up.settings.sections("split", "compare", "tune")
    documents.ScenarioSummary.model_validate(summary).write(folder / "metrics.json")
    row = comparisons.rival(
        "worse",
        documents.Difference(
            value=-0.0123, low=-0.0456, high=0.0789, detectable=0.111, patients_to_settle=2222.2
        ),
        reason="So it is.",
        switched_off=True,
        result_digest=summary["result_digest"],
        subgroups=subgroups.subgroups(predictions, manifest, settings, floor),
    )
    beside = documents.Difference(value=0.5, low=0.4, high=0.6)
    row = row.model_copy(update={"delta": row.delta | {"locked.sensitivity": beside}})
    compared = comparisons.comparison(
        {made.BACKBONE: {"oversample": row}},
        notes=["a <b>note</b>"],
        sensitivity_floor=floor,
        comparisons=5,
        headline="What comes first.",
        winners={made.BACKBONE: "oversample"},
    )
    compared.write(made_up.reports_path / "evidence.json")
    made_up.manifest_path.with_suffix(".quarantine.csv").write_text(
        "image_id,reason\nx.png,exact duplicate of secret/a.png\ny.png,unreadable: secret b\nz.png,unreadable: c\n"
    )
    return made_up


def change(path, **values):
    files.write_json(path, {**files.read_json(path), **values})


def write(study: config.Study, **software: str) -> str:
    return card.card(study, made.BACKBONE, "oversample", software)


def test_it_has_every_section_and_comes_out_the_same_twice(study):
    text = write(study)
    assert re.findall(r"^## (.*)$", text, flags=re.M) == list(SECTIONS)
    assert "For research only" in text
    assert text == write(study)


def test_metrics_and_mistakes_are_those_of_the_files(study):
    text = write(study)
    folder = study.result_path(made.BACKBONE, "oversample")
    cells = files.read_json(folder / "metrics.json")["metrics"]
    for name, label in (("sensitivity", "sensitivity"), ("brier", "Brier score")):
        raw, locked = (
            f"{cells[point][name]['value']:.3f} [{cells[point][name]['low']:.3f}, {cells[point][name]['high']:.3f}]"
            for point in ("raw", "locked")
        )
        assert f"| {label} |  | {raw} | {locked} |" in text
    table = records.Predictions.read(folder / "predictions.parquet").part("test").table
    counts = confusion_matrix(table["label"], table["calibrated_opacity"] >= table["threshold"])
    assert f"clear taken for opacity: {counts[0, 1]}" in text
    assert f"opacity taken for clear: {counts[1, 0]}" in text
    assert f"{counts[0, 1] + counts[1, 0]} of {counts.sum()} test images" in text


def test_numbers_follow_their_files(study):
    change(
        study.manifest_path.with_suffix(".json"), quarantined=4711, completeness="partial: so many"
    )
    change(study.splits_path.with_suffix(".json"), scheme="kfold")
    text = write(study)
    for said in (
        "4711 of",
        "partial: so many",
        "Partition: kfold",
        "exact duplicate: 1; unreadable: 2",
    ):
        assert said in text
    assert (
        "Difference in AUROC, simultaneous interval over 5 comparisons: -0.0123 [-0.0456, +0.0789]; margin 0.01"
        in text
    )
    assert "differences from 0.111 on; patients of the rarer class" in text
    assert "at most about: 2,222" in text
    assert (
        "Difference in sensitivity at the locked threshold, without a verdict: 0.500 [0.400" in text
    )
    assert "* Verdict: worse (switched off by the search)" in text
    assert "secret" not in text  # a reason may name an image


def test_settings_that_several_rounds_chose_are_told_once():
    one = SimpleNamespace(seed=0, settings={"l2": 0.1})
    other = SimpleNamespace(seed=0, settings={"l2": 0.01})
    of_another_seed = SimpleNamespace(seed=1, settings={"l2": 5.0})
    told = card._settings_by_round([other, one, one, of_another_seed])
    assert told == "l2 0.1 (2 of 3); l2 0.01"


def test_what_no_file_holds_is_said(study):
    text = write(study)
    assert "not measured px a side" in text  # this result has no model
    assert "software and commit: not recorded" in text
    (study.reports_path / "evidence.json").unlink()
    bare = write(study)
    for line in ("Verdict", "Subgroups evaluated", "Primary endpoint", "comparison"):
        assert re.search(rf"^\* {line}:.*not measured", bare, flags=re.M), line


def test_of_the_short_form_the_card_says_that_subgroups_are_not_measured(study):
    evidence_path = study.reports_path / "evidence.json"
    full = documents.Comparison.read(evidence_path)
    row = full.rows[made.BACKBONE]["oversample"].as_dict()
    del row["subgroups"]
    short = full.model_copy(
        update={"rows": {made.BACKBONE: {"oversample": documents.ScenarioRow(**row)}}}
    )
    short.write(study.reports_path / "comparison.json")
    assert "Subgroups evaluated: none: the data have no column for it" in write(study)
    evidence_path.unlink()
    text = write(study)
    assert "Subgroups evaluated: not measured" in text
    assert "So it is." in text
    assert "Verdict: worse" in text


def test_the_card_says_what_the_page_says(study):
    text = write(study)
    place = [text.index(said) for said in ("What comes first.", "So it is.", "The winner on vgg16")]
    assert place == sorted(place)
    assert place[-1] < text.index("## Model details")
    assert "its claim is the low end of the simultaneous 95 % interval: -0.0456 in AUROC" in text


def test_the_card_says_where_the_floor_is_missed(study):
    """The row's sensitivity at the locked threshold is 0.8; the floor is 0.9."""
    path = study.reports_path / "evidence.json"
    change(path, winners={made.BACKBONE: "baseline"})  # of winners the headline says it
    assert "misses the 90 % sensitivity" in write(study)
    assert "0.800 [0.700, 0.900] of images" in write(study)
    change(path, sensitivity_floor=0.75)
    assert "misses" not in write(study)


def test_a_rule_without_a_floor_promises_nothing(study):
    compared = documents.Comparison.read(study.reports_path / "evidence.json")
    compared = compared.model_copy(update={"winners": {made.BACKBONE: "baseline"}})
    assert any(
        "misses" in text for text in card.said(compared, "vgg16", "oversample", "sensitivity_floor")
    )
    assert not any(
        "misses" in text for text in card.said(compared, "vgg16", "oversample", "youden")
    )


def test_doing_nothing_claims_nothing():
    alone = comparisons.comparison()
    assert card.said(alone, made.BACKBONE, "baseline", "youden") == [
        "The winner on vgg16 is doing nothing: no gain is claimed."
    ]


def test_a_comparison_of_another_run_is_not_believed(study):
    change(study.result_path(made.BACKBONE, "oversample") / "metrics.json", result_digest="e" * 64)
    assert "Verdict: not measured" in write(study)


def test_software_is_what_the_caller_passes(study):
    text = write(study, keras="3.x", commit="abc")
    assert "* commit: abc" in text
    assert "* keras: 3.x" in text


def test_names_stay_text(study):
    folder = study.result_path(made.BACKBONE, "oversample")
    summary = files.read_json(folder / "metrics.json")
    name = "<script>|![x](http://h/i)"
    change(
        folder / "metrics.json",
        classes=[name, "b"],
        test={name: next(iter(summary["test"].values()))},
    )
    text = write(study)
    assert "<script>" not in text
    assert "](" not in text
    assert "&lt;script&gt;\\|" in text
    assert "a &lt;b&gt;note" in text
