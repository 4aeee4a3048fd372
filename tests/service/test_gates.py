"""Each gate against numbers from elsewhere, and every way in which evidence can be no evidence."""

import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from equipoise.core.errors import DataError
from equipoise.core.files import read_json
from equipoise.core.records import Splits
from equipoise.evaluation import intervals
from equipoise.service import evidence as evidence_
from equipoise.service import gates
from fabricate import made


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    promote = {"min_patients": 5, "sensitivity_low_at_least": 0.3, "calibration_slope": [0.5, 2.0]}
    return made.study(tmp_path, promote=promote)


def expected(study) -> pd.DataFrame:
    names = evidence_.Manifest.read(study.manifest_path).table["image_id"]
    return pd.DataFrame({"image_id": names, "calibrated_clear": 0.5, "calibrated_opacity": 0.5})


def evidence(study, scenario="baseline", strength=2.0, version="1") -> evidence_.Evidence:
    folder = made.result(study, scenario, strength)
    digests = read_json(folder / "metrics.json")["digests"]
    found = evidence_.collect(study, folder, digests, expected(study))
    meta = {
        **found.meta,
        "digests": {**found.meta["digests"], "test": found.predictions.test_digest()},
    }
    return replace(found, version=version, meta=meta)


def by_code(found) -> dict[str, gates.Gate]:
    return {gate.code: gate for gate in found}


def never(rows):
    raise AssertionError("nothing needs to be scored again")


def test_same_rows_are_paired_as_scikit_learn_would(study):
    strong, weak = evidence(study, "baseline", 2.0), evidence(study, "oversample", 1.0, "7")
    found = by_code(gates.pair(study, weak, strong, never))
    labels = weak.predictions.table["label"].to_numpy()
    scores = [item.predictions.table["prob_opacity"].to_numpy() for item in (weak, strong)]
    settings = study.settings.compare
    people = weak.predictions.table["patient_id"].to_numpy()
    patients, drawn = intervals.patient_resamples(people, labels, settings.resamples, settings.seed)
    weights = drawn[:, pd.Series(np.arange(len(patients)), index=patients).loc[people].to_numpy()]
    differences = [
        roc_auc_score(labels, scores[0], sample_weight=row)
        - roc_auc_score(labels, scores[1], sample_weight=row)
        for row in weights[1:]
    ]
    # Hesterberg 2015: the percentile at which Student's quantile, stretched by the patients' number, would stand.
    count = intervals.evaluate(
        strong.predictions, settings, study.settings.tune.sensitivity_floor
    ).effective_patients
    tail = stats.norm.cdf(
        -np.sqrt(count / (count - 1)) * stats.t.ppf(1 - settings.alpha / 2, count - 1)
    )
    low = np.quantile(differences, tail)
    assert found["EQ-G3"].number == pytest.approx(low, abs=1e-9)
    assert (found["EQ-G2"].verdict, found["EQ-G3"].verdict) == ("passed", "failed")
    assert "the same test rows" in found["EQ-G2"].detail
    assert f"{roc_auc_score(labels, scores[1]):.3f}" in found["EQ-G3"].detail
    better = by_code(gates.pair(study, strong, weak, never))
    assert better["EQ-G3"].verdict == "passed"
    equal = by_code(gates.pair(study, strong, strong, never))
    assert (equal["EQ-G3"].number, equal["EQ-G3"].verdict) == (0.0, "passed")


def resplit(study, tmp_path, **split):
    """The same images under another split."""
    other = made.config.load_study("made", made.params(split=split, promote={"min_patients": 2}))
    made.splits.run(other)
    return other


def test_other_split_is_scored_again_on_rows_never_seen(study, tmp_path):
    champion = evidence(study, version="4")
    other = resplit(study, tmp_path, seed=5)
    challenger = evidence(other)
    asked = []

    def rescore(rows):
        asked.extend(rows["image_id"])
        values = np.linspace(0.1, 0.9, len(rows))
        columns = {
            f"{kind}_{name}": values for kind in ("raw", "prob") for name in ("clear", "opacity")
        }
        return pd.DataFrame(columns, index=list(rows["image_id"]))

    found = by_code(gates.pair(other, challenger, champion, rescore))
    assert "never fitted on" in found["EQ-G2"].detail
    fitted = champion.images.loc[champion.images["fitted"]]
    people = challenger.images.set_index("image_id").loc[asked, "patient_id"]
    assert asked
    assert not set(people) & set(fitted["patient_id"])
    test = set(challenger.predictions.table["image_id"])
    assert set(asked) == {
        row.image_id
        for row in challenger.images.itertuples()
        if row.image_id in test and row.patient_id not in set(fitted["patient_id"])
    }
    assert found["EQ-G2"].number == people.nunique()


def test_picture_that_the_champion_knows_under_another_name_is_left_out(study, tmp_path):
    champion = evidence(study)
    other = resplit(study, tmp_path, seed=5)
    challenger = evidence(other)
    renamed = champion.images.assign(
        image_id=lambda table: "x" + table["image_id"], patient_id="stranger"
    )
    asked = []

    def rescore(rows):
        asked.extend(rows["image_id"])
        raise DataError("far enough")

    assert (
        gates.pair(other, challenger, replace(champion, images=renamed), rescore)[0].detail
        == "far enough"
    )
    known = set(champion.images.loc[champion.images["fitted"], "picture"])
    assert not known & set(challenger.images.set_index("image_id").loc[asked, "picture"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"group_by": "lesion"}, "they differ in group_by: patient, and lesion"),
        ({"pseudonym_key": "ab12"}, "they differ in pseudonym_key"),
        ({"several": True}, "too few of them were never shown"),
    ],
)
def test_evidence_that_cannot_be_compared_is_refused(study, change, sentence):
    challenger, champion = evidence(study), evidence(study, version="4")
    images = champion.images.assign(fitted=True)
    champion = replace(champion, images=images, meta={**champion.meta, **change})
    second, third = gates.pair(study, challenger, champion, never)
    assert (second.verdict, third.verdict) == ("failed", "not applicable")
    assert sentence in second.detail


def test_images_that_are_gone_cannot_be_scored_again(study, tmp_path):
    rows = evidence(study).images[["image_id", "sha256"]]
    with pytest.raises(DataError, match="is not in data/raw/made to score it again"):
        evidence_._rescored(study, None, rows)


def test_folds_are_comparable_by_their_split_and_served_by_a_refit(study, tmp_path):
    folded = resplit(study, tmp_path, scheme="kfold")
    first, second = evidence(folded), evidence(folded, "oversample", 1.9, "2")
    assert first.images["fitted"].all()
    assert "the same split" in by_code(gates.pair(folded, first, second, never))["EQ-G2"].detail
    moved = replace(
        second, meta={**second.meta, "digests": {**second.meta["digests"], "splits": "0" * 64}}
    )
    assert gates.pair(folded, first, moved, never)[0].verdict == "failed"


def test_evidence_is_of_the_served_model_alone(study):
    folder = made.result(study, "baseline")
    table = gates.Predictions.read(folder / "predictions.parquet")
    others = [table.table.assign(seed=1), table.table.assign(repeat=1)]
    gates.Predictions(pd.concat([table.table, *others]), table.meta).write(
        folder / "predictions.parquet"
    )
    found = evidence_.collect(study, folder, {}, expected(study))
    split = Splits.read(study.splits_path).table
    assert sorted(found.predictions.table["image_id"]) == sorted(
        split.loc[split["part"] == "test", "image_id"]
    )
    assert set(found.images.loc[~found.images["fitted"], "image_id"]) == set(
        found.predictions.table["image_id"]
    )


@pytest.mark.parametrize(
    ("bounds", "failed"),
    [
        ({}, []),
        ({"sensitivity_low_at_least": 0.99}, ["EQ-G4"]),
        ({"calibration_slope": [0.01, 0.02]}, ["EQ-G5"]),
        ({"min_patients": 50}, ["EQ-G6"]),
    ],
)
def test_absolutes_stand_against_their_bounds(study, bounds, failed):
    promote = study.settings.promote.model_copy(update=bounds)
    strict = study.model_copy(
        update={"settings": study.settings.model_copy(update={"promote": promote})}
    )
    challenger = evidence(study)
    found = by_code(gates.absolutes(strict, challenger))
    assert [gate.code for gate in found.values() if gate.verdict == "failed"] == failed
    test = challenger.predictions.table
    assert found["EQ-G6"].number == test[test["label"] == 1]["patient_id"].nunique()
    right = (test["calibrated_opacity"] >= test["threshold"])[test["label"] == 1].mean()
    assert f"low end of {right:.3f}" in found["EQ-G4"].detail


def test_more_than_two_classes_have_no_threshold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "tune": {"objective": "auroc"},
        "compare": {"primary": "auroc"},
        "promote": {"min_patients": 3},
    }
    study = made.study(tmp_path, (30, 20, 15), ("a", "b", "c"), **changes)
    folder = made.result(study, "baseline", 2.0)
    found = by_code(gates.absolutes(study, evidence_.collect(study, folder, {}, expected(study))))
    assert [gate.verdict for gate in found.values()] == [
        "not applicable",
        "not applicable",
        "passed",
    ]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ({}, "passed"),
        ({"EQ-OFFICIAL": "finding"}, "failed"),
        ({"EQ008": "finding"}, "failed"),
        ({"EQ001": None}, "failed"),
        ({"EQ001": "not applicable"}, "passed"),
        ({"EQ007": "finding"}, "passed"),
    ],
)
def test_leaks_and_unasked_checks(answers, verdict):
    codes = ("EQ001", "EQ002", "EQ004", "EQ007", "EQ008", "EQ-OFFICIAL")
    tags = {f"equipoise.check.{code}": answers.get(code, "none") for code in codes}
    assert gates._leakage({key: value for key, value in tags.items() if value}).verdict == verdict


def test_code_and_params_are_those_of_a_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags = {"equipoise.git_commit": "abc", "equipoise.uncommitted": ""}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert gates._committed(tags).verdict == "failed"
    (tmp_path / "params.yaml").write_text("run: {}\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], check=True)
    assert gates._committed(tags).verdict == "passed"
    assert gates._committed({**tags, "equipoise.uncommitted": "src/a.py"}).detail.startswith(
        "src/a.py (when it was"
    )
    assert gates._committed({}).verdict == "failed"
    (tmp_path / "dvc.lock").write_text("results are no code\n")
    assert gates.uncommitted() == []
    (tmp_path / "src").mkdir()
    (tmp_path / "src/new.py").write_text("")
    (tmp_path / "params.yaml").write_text("run: {studies: []}\n")
    assert gates.uncommitted() == ["params.yaml", "src/"]
    assert gates._committed(tags).number == 2


def test_table_is_one_line_per_gate():
    rows = [
        gates.Gate("EQ-G3", "failed", -0.031, "> -0.02", "low end"),
        gates.Gate("EQ-G7", "passed", 1e-8, "<= 1e-05"),
    ]
    lines = gates.table_text(rows).splitlines()
    assert len(lines) == 3
    assert "-0.031" in lines[1]
    assert "1.0e-08" in lines[2]
    assert (
        str(rows[0])
        == "EQ-G3 AUROC not inferior to the champion's is -0.031 where > -0.02 is needed (low end)"
    )
