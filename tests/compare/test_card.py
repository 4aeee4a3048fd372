"""The model card: every number is a file's, what no file holds is said, and names stay text."""

import re

import pytest
from sklearn.metrics import confusion_matrix

from equipoise.compare import card, evidence
from equipoise.core import config, documents, files, records
from equipoise.evaluation import intervals
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
        documents.Difference(value=-0.0123, low=-0.0456, high=0.0789),
        reason="so it is",
        result_digest=summary["result_digest"],
        subgroups=evidence.subgroups(predictions, manifest, settings, floor),
    )
    compared = comparisons.comparison(
        {made.BACKBONE: {"oversample": row}}, notes=["a <b>note</b>"], sensitivity_floor=floor
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
    assert "Difference in AUROC: -0.012 [-0.046, 0.079]" in text
    assert "Verdict: worse (so it is)" in text
    assert "secret" not in text  # a reason may name an image


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
    assert "Verdict: worse (so it is)" in text


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
