"""Each gate against numbers from elsewhere, and every way in which evidence can be no evidence."""

import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from equipoise.core.errors import DataError
from equipoise.core.files import read_json
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.evaluation import intervals
from equipoise.evaluation.resamples import patient_resamples
from equipoise.registry import checkout, gates
from equipoise.registry import evidence as evidence_
from equipoise.registry.pairing import Unpaired, pair
from fabricate import made


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # made.study asks for it
    promote = {"min_patients": 5, "sensitivity_low_at_least": 0.3, "calibration_slope": [0.5, 2.0]}
    return made.study(tmp_path, promote=promote)


def expected(study) -> pd.DataFrame:
    names = Manifest.read(study.manifest_path).table["image_id"]
    return pd.DataFrame({"image_id": names, "calibrated_clear": 0.5, "calibrated_opacity": 0.5})


def evidence(study, scenario="baseline", strength=2.0, version="1") -> evidence_.Evidence:
    folder = made.result(study, scenario, strength)
    digests = read_json(folder / "metrics.json")["digests"]
    collected = evidence_.collect(study, folder, digests, expected(study))
    digests["test"] = collected.predictions.test_digest()
    origin = collected.origin.model_copy(update={"digests": digests})
    return replace(collected, version=version, origin=origin)


def change_origin(carried: evidence_.Evidence, **changes) -> evidence_.Evidence:
    return replace(carried, origin=carried.origin.model_copy(update=changes))


def case(study, **changes) -> gates.Case:
    """A case in which every gate is passed or not applicable, with some things changed."""
    same = evidence_.ServedDifference(0.0, "16 images")
    tags = {f"equipoise.check.{code}": "none" for code in gates.LEAK_CHECKS}
    passed = gates.Case(
        settings=study.settings,
        tags=tags | {"equipoise.uncommitted": "", "equipoise.git_commit": "abc"},
        evidence=evidence(study),
        pairing=Unpaired("not applicable", "there is no champion"),
        misplaced=[],
        uncommitted=[],
        load=lambda: None,
        differences=lambda model, carried: same,
    )
    return replace(passed, **changes)


def judged(case: gates.Case) -> dict[str, gates.Verdict]:
    return {verdict.code: verdict for verdict in gates.ask_all(case)}


def paired(study, challenger, champion, rescore) -> dict[str, gates.Verdict]:
    """What EQ-G2 and EQ-G3 say of a pair."""
    pairing = pair(study.settings, challenger, champion, rescore)
    asked = case(study, pairing=pairing)
    return {gate.code: gate.judge(asked) for gate in (gates.comparable, gates.not_inferior)}


def never(rows):
    raise AssertionError("nothing needs to be scored again")


def test_same_rows_are_paired_as_scikit_learn_would(study):
    strong, weak = evidence(study, "baseline", 2.0), evidence(study, "oversample", 1.0, "7")
    verdicts = paired(study, weak, strong, never)
    labels = weak.predictions.table["label"].to_numpy()
    scores = [item.predictions.table["prob_opacity"].to_numpy() for item in (weak, strong)]
    settings = study.settings.compare
    people = weak.predictions.table["patient_id"].to_numpy()
    patients, drawn = patient_resamples(people, labels, settings.resamples, settings.seed)
    weights = drawn[:, pd.Series(np.arange(len(patients)), index=patients).loc[people].to_numpy()]
    differences = [
        roc_auc_score(labels, scores[0], sample_weight=row)
        - roc_auc_score(labels, scores[1], sample_weight=row)
        for row in weights[1:]
    ]
    # One comparison on one test part: Student's interval around the estimate.
    count = intervals.evaluate(
        strong.predictions, settings, study.settings.tune.sensitivity_floor
    ).effective_patients
    estimate = roc_auc_score(labels, scores[0]) - roc_auc_score(labels, scores[1])
    quantile = stats.t.ppf(1 - settings.alpha / 2, count - 1)
    low = estimate - quantile * np.std(differences)
    comparable, not_inferior = verdicts["EQ-G2"].answer, verdicts["EQ-G3"].answer
    assert not_inferior.number == pytest.approx(low, abs=1e-4)
    assert (comparable.word, not_inferior.word) == ("passed", "failed")
    assert "the same test rows" in comparable.detail
    assert f"{roc_auc_score(labels, scores[1]):.3f}" in not_inferior.detail
    assert paired(study, strong, weak, never)["EQ-G3"].answer.word == "passed"
    equal = paired(study, strong, strong, never)["EQ-G3"].answer
    assert (equal.number, equal.word) == (0.0, "passed")


def resplit(study, tmp_path, **split):
    """The same images under another split."""
    params = made.params(split=split, promote={"min_patients": 2})
    other = made.config.load_study("made", params, root=tmp_path)
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

    answer = paired(other, challenger, champion, rescore)["EQ-G2"].answer
    assert "never fitted on" in answer.detail
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
    assert answer.number == people.nunique()


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

    renamed_champion = replace(champion, images=renamed)
    pairing = pair(other.settings, challenger, renamed_champion, rescore)
    assert pairing == Unpaired("failed", "far enough")
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
    champion = change_origin(replace(champion, images=images), **change)
    verdicts = paired(study, challenger, champion, never)
    comparable, not_inferior = verdicts["EQ-G2"], verdicts["EQ-G3"]
    assert (comparable.answer.word, not_inferior.answer.word) == ("failed", "not applicable")
    assert (comparable.bound, not_inferior.bound) == ("", "")
    assert sentence in comparable.answer.detail


def test_images_that_are_gone_cannot_be_scored_again(study, tmp_path):
    rows = evidence(study).images[["image_id", "sha256"]]
    model_of_images = SimpleNamespace(metadata=None)
    with pytest.raises(DataError, match="is not in data/raw/made to score it again"):
        evidence_.rescore(study, model_of_images, rows)


def test_folds_are_comparable_by_their_split_and_served_by_a_refit(study, tmp_path):
    folded = resplit(study, tmp_path, scheme="kfold")
    first, second = evidence(folded), evidence(folded, "oversample", 1.9, "2")
    assert first.images["fitted"].all()
    assert pair(folded.settings, first, second, never).how == "the same split"
    pairing = pair(folded.settings, first, second, never)
    compare, floor = folded.settings.compare, folded.settings.tune.sensitivity_floor
    evaluations = [intervals.evaluate(one.predictions, compare, floor) for one in (first, second)]
    auroc = intervals.Endpoint("free", "auroc")
    draws = evaluations[0].draws[auroc] - evaluations[1].draws[auroc]
    count = evaluations[0].effective_patients
    assert count < 30  # so few patients: half as much variance again
    quantile = stats.t.ppf(1 - compare.alpha / 2, count - 1)
    half_width = quantile * draws[1:].std() * np.sqrt(1.5)
    assert pairing.difference == pytest.approx(draws[0])
    assert pairing.low == pytest.approx(draws[0] - half_width, abs=1e-4)
    assert pairing.high == pytest.approx(draws[0] + half_width, abs=1e-4)
    moved = change_origin(second, digests=second.origin.digests | {"splits": "0" * 64})
    assert pair(folded.settings, first, moved, never).word == "failed"


def test_evidence_is_of_the_served_model_alone(study):
    folder = made.result(study, "baseline")
    table = Predictions.read(folder / "predictions.parquet")
    others = [table.table.assign(seed=1), table.table.assign(repeat=1)]
    Predictions(pd.concat([table.table, *others]), table.meta).write(folder / "predictions.parquet")
    collected = evidence_.collect(study, folder, {}, expected(study))
    split = Splits.read(study.splits_path).table
    assert sorted(collected.predictions.table["image_id"]) == sorted(
        split.loc[split["part"] == "test", "image_id"]
    )
    images = collected.images
    assert set(images.loc[~images["fitted"], "image_id"]) == set(
        collected.predictions.table["image_id"]
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
    verdicts = judged(case(strict, evidence=challenger))
    assert [code for code, verdict in verdicts.items() if verdict.failed] == failed
    test = challenger.predictions.table
    assert verdicts["EQ-G6"].answer.number == test[test["label"] == 1]["patient_id"].nunique()
    right = (test["calibrated_opacity"] >= test["threshold"])[test["label"] == 1].mean()
    assert f"low end of {right:.3f}" in verdicts["EQ-G4"].answer.detail


def floor_case(study, floor, **threshold) -> gates.Case:
    """A case under another floor, or another rule of the threshold."""
    settings = study.settings
    tune = settings.tune.model_copy(update={"sensitivity_floor": floor})
    rule = settings.threshold.model_copy(update=threshold)
    changed = settings.model_copy(update={"tune": tune, "threshold": rule})
    return case(study.model_copy(update={"settings": changed}))


def test_a_missed_floor_is_said_with_its_numbers_and_fails_beyond_chance(study):
    test = evidence(study).predictions.table
    diseased = test[test["label"] == 1]
    by_image = (diseased["calibrated_opacity"] >= diseased["threshold"]).mean()
    logits = np.log(diseased["calibrated_opacity"]), np.log(diseased["calibrated_clear"])
    means = [values.groupby(diseased["patient_id"]).mean() for values in logits]
    by_patient = (means[0] > means[1]).mean()  # the threshold is 0.5 of images and patients
    assert by_image < by_patient < 1
    lenient = gates.keeps_its_floor.judge(floor_case(study, by_image - 0.01))
    assert lenient.answer.word == "passed"
    assert f"image {by_image:.3f} [" in lenient.answer.detail
    assert f"patient {by_patient:.3f} [" in lenient.answer.detail
    assert "missed" not in lenient.answer.detail
    assert lenient.bound == f">= {by_image - 0.01:g}"
    close = gates.keeps_its_floor.judge(floor_case(study, by_image + 0.01))
    assert close.answer.word == "passed"
    assert close.answer.detail.endswith("missed by image, which chance explains")
    ends = [float(text) for text in re.findall(r", (\d\.\d+)\]", close.answer.detail)]
    assert close.answer.number == pytest.approx(min(ends), abs=5e-4)
    strict = gates.keeps_its_floor.judge(floor_case(study, min(ends) + 0.01))
    assert strict.failed
    assert strict.forceable
    assert "missed by image" in strict.answer.detail
    assert "chance" not in strict.answer.detail


def test_where_every_patient_has_an_image_of_the_disease_the_floor_is_kept_by_image(study):
    """One eye of each patient is healthy: nobody is, and nothing can be asked of patients."""
    carried = evidence(study)
    table = carried.predictions.table
    people = table["patient_id"].where(table["label"] == 1)
    table = table.assign(patient_id=people.ffill().bfill())
    predictions = replace(carried.predictions, table=table)
    verdicts = judged(case(study, evidence=replace(carried, predictions=predictions)))
    answer = verdicts["EQ-G10"].answer
    image = gates.keeps_its_floor.judge(case(study)).answer
    assert answer.detail.split(" [")[0] == image.detail.split(" [")[0]
    assert "nothing by patient: every one has an image of the positive class" in answer.detail
    assert "patient 0" not in answer.detail


def test_without_an_interval_nothing_passes(study):
    """One patient of a class decides everything."""
    carried = evidence(study)
    table = carried.predictions.table
    first = table.loc[table["label"] == 1, "patient_id"].iloc[0]
    kept = table[(table["label"] == 0) | (table["patient_id"] == first)]
    alone = replace(carried.predictions, table=kept.reset_index(drop=True))
    asked = case(study, evidence=replace(carried, predictions=alone))
    for gate in (gates.sensitive, gates.calibrated, gates.keeps_its_floor):
        answer = gate.judge(asked).answer
        assert answer.word == "failed"
        assert "cannot be computed" in answer.detail


def test_a_slope_that_does_not_exist_is_said_to_be_none(study):
    """One logit separates the classes, so that no slope is steep enough."""
    carried = evidence(study)
    table = carried.predictions.table
    prob = np.where(table["label"] == 1, 0.9, 0.1)
    table = table.assign(calibrated_opacity=prob, calibrated_clear=1 - prob)
    separated = replace(carried.predictions, table=table)
    verdict = gates.calibrated.judge(case(study, evidence=replace(carried, predictions=separated)))
    assert verdict.failed
    assert verdict.answer.number is None
    assert verdict.bound == ""
    assert verdict.answer.detail == (
        "the slope cannot be computed on these rows (undefined in every resample), "
        "so it was not held against the bound"
    )
    assert "nan" not in str(gates.table([verdict]))


def test_a_rule_that_promises_no_sensitivity_has_no_floor_to_keep(study):
    answer = gates.keeps_its_floor.judge(floor_case(study, 0.99, rule="youden")).answer
    assert (answer.word, answer.asked) == ("not applicable", False)
    assert "youden" in answer.detail


def test_more_than_two_classes_have_no_threshold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "tune": {"objective": "auroc"},
        "compare": {"primary": "auroc"},
        "promote": {"min_patients": 3},
    }
    study = made.study(tmp_path, (30, 20, 15), ("a", "b", "c"), **changes)
    folder = made.result(study, "baseline", 2.0)
    columns = [f"calibrated_{name}" for name in "abc"]
    names = Manifest.read(study.manifest_path).table[["image_id"]]
    carried = evidence_.collect(study, folder, {}, names.assign(**dict.fromkeys(columns, 1 / 3)))
    asked = case(study, evidence=carried)
    absolutes = (
        gates.sensitive,
        gates.calibrated,
        gates.enough_patients,
        gates.keeps_its_floor,
    )
    words = [gate.judge(asked).answer.word for gate in absolutes]
    assert words == ["not applicable", "not applicable", "passed", "not applicable"]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ({}, "passed"),
        ({"EQ-OFFICIAL": "finding"}, "failed"),
        ({"EQ008": "failed"}, "failed"),
        ({"EQ001": None}, "failed"),
        ({"EQ001": "not applicable"}, "passed"),
        ({"EQ007": "failed"}, "passed"),
    ],
)
def test_leaks_and_unasked_checks(study, answers, verdict):
    codes = ("EQ001", "EQ002", "EQ004", "EQ007", "EQ008", "EQ-OFFICIAL")
    tags = {f"equipoise.check.{code}": answers.get(code, "none") for code in codes}
    asked = case(study, tags={key: value for key, value in tags.items() if value})
    assert gates.no_leakage.judge(asked).answer.word == verdict


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """A folder with a commit of params.yaml."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "params.yaml").write_text("run: {}\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], check=True, cwd=tmp_path)
    return tmp_path


def test_changes_of_code_and_params_are_uncommitted_and_others_are_not(commit):
    assert checkout.uncommitted(commit) == []
    (commit / "dvc.lock").write_text("results are no code\n")
    assert checkout.uncommitted(commit) == []
    (commit / "src").mkdir()
    (commit / "src/new.py").write_text("")
    (commit / "params.yaml").write_text("run: {studies: []}\n")
    assert checkout.uncommitted(commit) == ["params.yaml", "src/"]


def test_without_git_nothing_is_known_of_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.uncommitted(tmp_path) is None


RENEWED = "`equipoise register --study made`"
RENEWS = f"{RENEWED} renews this"


@pytest.mark.parametrize(
    ("then", "now", "word", "detail"),
    [
        ("", [], "passed", "commit abc"),
        ("src/a.py", [], "failed", f"{RENEWS} from what is committed now: src/a.py (when it was"),
        ("", ["params.yaml", "src/"], "failed", f"commit, then {RENEWED}: params.yaml, src/"),
        ("", None, "failed", "this is no git checkout; `git init` and commit"),
        ("no git", [], "failed", f"{RENEWS} from what is committed now: all of it (when it was"),
        (None, [], "failed", f"{RENEWS} from what is committed now: all of it (when it was"),
    ],
)
def test_code_and_params_are_those_of_a_commit(study, then, now, word, detail):
    tags = {"equipoise.git_commit": "abc", "equipoise.study": "made"}
    if then is not None:
        tags["equipoise.uncommitted"] = then
    verdict = gates.committed.judge(case(study, tags=tags, uncommitted=now))
    assert (verdict.answer.word, verdict.bound) == (word, "0")
    assert detail in verdict.answer.detail


def test_a_model_that_does_not_load_cannot_be_forced(study):
    def load():
        raise OSError("no such artifact\nand more")

    verdict = gates.reproduces.judge(case(study, load=load))
    assert (verdict.failed, verdict.forceable) == (True, False)
    assert str(verdict).endswith("(it does not load: no such artifact)")


def test_without_evidence_only_some_gates_are_asked(study):
    verdicts = judged(case(study, evidence=None))
    assert list(verdicts) == ["EQ-G1", "EQ-G2", "EQ-G3", "EQ-G7", "EQ-G8", "EQ-G9"]
    assert verdicts["EQ-G7"].answer.detail == "it loads, without evidence to reproduce"
    assert verdicts["EQ-G7"].forceable


def test_gates_have_codes_in_a_row():
    assert [gate.code for gate in gates.GATES] == [f"EQ-G{number}" for number in range(1, 11)]


def test_a_verdict_keeps_the_form_it_has_in_the_log():
    verdict = gates.Verdict(
        "EQ-G6", "test patients", ">= 20", gates.Answer("passed", 23, "x" * 300)
    )
    assert list(verdict.as_record().as_dict().items()) == [
        ("code", "EQ-G6"),
        ("verdict", "passed"),
        ("number", 23),
        ("bound", ">= 20"),
        ("detail", "x" * 200),
        ("forceable", True),
        ("name", "test patients"),
    ]
    assert isinstance(verdict.as_record().number, int)


def test_table_is_one_line_per_gate():
    title = "AUROC not inferior to the champion's"
    verdicts = [
        gates.Verdict("EQ-G3", title, "> -0.02", gates.Answer("failed", -0.031, "low end")),
        gates.Verdict("EQ-G7", "loads", "<= 1e-05", gates.Answer("passed", 1e-8)),
    ]
    lines = str(gates.table(verdicts)).splitlines()
    assert len(lines) == 3
    assert "-0.031" in lines[1]
    assert "1.0e-08" in lines[2]
    assert str(verdicts[0]) == f"EQ-G3 {title} is -0.031 where > -0.02 is needed (low end)"
