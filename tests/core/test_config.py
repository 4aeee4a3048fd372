"""params.yaml -> settings: what is inherited, what is refused, and whether the refusal helps."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from equipoise.core import config, environment
from equipoise.core.config import find_root, load_study, parse_override, read_params
from equipoise.core.errors import ConfigError
from fabricate import made

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def params():
    return read_params(ROOT)


@pytest.mark.parametrize("name", ["demo", "chest_xray", "breakhis"])
def test_shipped_studies_load(params, name):
    study = load_study(name, params)
    assert study.name == name
    assert study.backbones == tuple(params["run"]["backbones"])
    assert study.scenarios == tuple(params["run"]["scenarios"])
    assert set(study.scenarios) <= set(study.scenario_settings)


def test_every_shipped_study_lists_every_section(params):
    for name, sections in params["studies"].items():
        assert set(sections) == set(config.Settings.model_fields), name


def test_run_studies_are_studies(params):
    assert config.run_studies(params) == params["run"]["studies"]
    assert set(config.run_studies(params)) <= set(params["studies"])


def test_study_lies_over_the_defaults_key_by_key(params):
    params["defaults"]["split"].update(folds=7, seed=3)
    params["studies"]["breakhis"]["split"] = {"seed": 4}
    split = load_study("breakhis", params).settings.split
    assert (split.folds, split.seed) == (7, 4)


def test_only_kfold_deals_all_patients_anew_unless_a_number_says_so(params):
    def repeats(scheme, **own):
        params["studies"]["breakhis"]["split"] = {"scheme": scheme, **own}
        return load_study("breakhis", params).settings.split.repeats

    assert repeats("kfold") == 5
    assert repeats("holdout") == repeats("official") == 1
    assert repeats("holdout", repeats=3) == 3


def test_a_scheme_without_repeats_is_named(params):
    params["studies"]["breakhis"]["split"] = {"scheme": "official", "repeats": {"kfold": 2}}
    with pytest.raises(ConfigError, match="repeats names kfold, and the scheme is official"):
        load_study("breakhis", params)


def test_loading_leaves_the_params_as_they_were(params):
    before = yaml.safe_dump(params)
    load_study("demo", params, {"tune.trials": 3})
    assert yaml.safe_dump(params) == before


def test_paths_and_dataset_follow_the_name_unless_said(params):
    study = load_study("chest_xray", params)
    assert study.dataset == "chest_xray"
    assert study.raw == Path("data/raw/chest_xray")
    assert study.manifest_path == Path("data/manifest/chest_xray.parquet")
    assert study.result_path("vgg16", "baseline") == Path("results/chest_xray/vgg16/baseline")
    moved = load_study(
        "chest_xray", params, {"ingest.raw": "elsewhere", "ingest.dataset": "breakhis"}
    )
    assert (moved.dataset, moved.raw) == ("breakhis", Path("elsewhere"))


def test_only_a_study_with_drawn_images_has_a_phantom_section(params):
    assert load_study("demo", params).settings.phantom.patients == 720
    assert load_study("chest_xray", params).settings.phantom is None


def test_settings_cannot_change_afterwards(params):
    with pytest.raises(ValidationError, match="frozen"):
        load_study("demo", params).settings.tune.trials = 1


# --- unknown names --------------------------------------------------------------------------------


def test_unknown_study_names_the_nearest(params):
    with pytest.raises(ConfigError) as error:
        load_study("chestxray", params)
    assert str(error.value) == (
        "There is no study 'chestxray'. Did you mean 'chest_xray'? Known: breakhis, chest_xray, demo."
    )


def test_unknown_key_of_a_study_names_the_nearest(params):
    params["studies"]["demo"]["split"]["val_fractoin"] = 0.2
    with pytest.raises(
        ConfigError,
        match=r"no key 'studies.demo.split.val_fractoin' in params.yaml. Did you mean .*split.val_fraction'",
    ):
        load_study("demo", params)


def test_unknown_section_of_a_study_names_the_nearest(params):
    params["studies"]["demo"]["tunee"] = {}
    with pytest.raises(
        ConfigError, match=r"no key 'studies.demo.tunee' in params.yaml. Did you mean .*demo.tune'"
    ):
        load_study("demo", params)


def test_unknown_section_of_the_defaults_names_the_nearest(params):
    params["defaults"]["spilt"] = {}
    with pytest.raises(
        ConfigError,
        match=r"no key 'defaults.spilt' in params.yaml. Did you mean 'defaults.split'\?",
    ):
        load_study("demo", params)


@pytest.mark.parametrize(
    ("place", "key", "near"),
    [
        (None, "studys", "studies"),
        ("run", "backbone", "run.backbones"),
        ("engine", "worker", "engine.workers"),
    ],
)
def test_unknown_key_at_the_top_names_the_nearest(params, place, key, near):
    (params[place] if place else params)[key] = 1
    with pytest.raises(ConfigError, match=rf"{key}' in params.yaml. Did you mean '{near}'\?"):
        load_study("demo", params)


def test_unknown_key_inside_a_constraint_is_refused(params):
    params["studies"]["demo"]["tune"]["constraint"] = {"metrik": "sensitivity", "at_least": 0.9}
    with pytest.raises(ConfigError, match=r"tune\.constraint\.metrik is 'sensitivity'"):
        load_study("demo", params)


# --- bad values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split.val_fraction", 0),
        ("split.test_fraction", 1.0),
        ("split.test_fraction", float("nan")),
        ("split.scheme", "random"),
        ("split.folds", 1),
        ("split.seed", None),
        ("ingest.duplicates", "maybe"),
        ("augment.zoom_fraction", 0.5),
        ("embed.image_size_px", 16),
        ("embed.views", -1),
        ("tune.trials", 0),
        ("tune.sensitivity_floor", 1),
        ("tune.l2_first", []),
        ("train.seeds", []),
        ("train.mode", "both"),
        ("threshold.cost_ratio", 0),
        ("compare.resamples", 10),
        ("tracking.trials", "some"),
    ],
)
def test_value_out_of_range_is_named_with_its_place_and_value(params, key, value):
    with pytest.raises(ConfigError) as error:
        load_study("demo", params, {key: value})
    assert f"{key} is {value!r}: " in str(error.value)
    assert str(error.value).startswith("Settings of study 'demo' cannot be used.")


def test_every_bad_value_is_told_at_once(params):
    with pytest.raises(ConfigError, match=r"split\.folds is 1: .*; tune\.trials is 0: "):
        load_study("demo", params, {"split.folds": 1, "tune.trials": 0})


@pytest.mark.parametrize(("key", "value"), [("tune.l2_low", 11.0), ("tune.l2_first", [0.01, 50.0])])
def test_l2_range_must_hold_its_first_values(params, key, value):
    with pytest.raises(
        ConfigError, match="l2_low < l2_high, and every value of l2_first between them"
    ):
        load_study("demo", params, {key: value})


def test_lacking_default_section_is_named(params):
    del params["defaults"]["train"], params["studies"]["demo"]["train"]
    with pytest.raises(ConfigError, match=r"params\.yaml lacks defaults\.train\."):
        load_study("demo", params)


@pytest.mark.parametrize("key", ["studies", "defaults", "run", "engine"])
def test_lacking_top_mapping_is_named(params, key):
    del params[key]
    with pytest.raises(ConfigError, match=f"needs a mapping under '{key}', it holds None"):
        load_study("demo", params)


def test_study_that_is_no_mapping_is_refused(params):
    params["studies"]["demo"] = "holdout"
    with pytest.raises(
        ConfigError, match=r"needs a mapping under 'studies\.demo', it holds 'holdout'"
    ):
        load_study("demo", params)


@pytest.mark.parametrize("place", ["studies.demo", "defaults"])
def test_section_that_is_no_mapping_is_refused(params, place):
    (params["defaults"] if place == "defaults" else params["studies"]["demo"])["split"] = 5
    with pytest.raises(ConfigError, match="split"):
        load_study("demo", params)


def test_scenarios_that_are_no_mapping_are_refused(params):
    params["scenarios"] = ["baseline"]
    with pytest.raises(ConfigError, match="scenarios"):
        load_study("demo", params)


def test_bare_word_where_a_list_is_expected_is_not_read_letter_by_letter(params):
    params["run"]["backbones"] = "vgg16"
    with pytest.raises(ConfigError, match="backbones"):
        load_study("demo", params)


def _numbers(params):
    """Dotted keys of all settings whose default is a number or a list of numbers."""
    for section, values in params["defaults"].items():
        for key, value in values.items():
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, int | float) and not isinstance(first, bool):
                yield f"{section}.{key}", value


def test_true_is_no_number(params):
    numbers = dict(_numbers(params))
    assert len(numbers) > 30
    for key, value in numbers.items():
        wrong = [True] * len(value) if isinstance(value, list) else True
        with pytest.raises(ConfigError, match=rf"{key}\S* is True: .*a number is expected"):
            load_study("demo", params, {key: wrong})


@pytest.mark.parametrize(
    "changes", [{"compare.mistakes": True}, {"tune.constraint": {"metric": "f1", "at_least": True}}]
)
def test_true_is_no_number_where_the_default_is_null(params, changes):
    with pytest.raises(ConfigError, match=r"is True: .*a number is expected"):
        load_study("demo", params, changes)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("finetune.average_decay", 1, "less than 1"),
        ("finetune.layer_decay", 1.5, "less than or equal to 1"),
        ("finetune.layer_decay", 0, "greater than 0"),
        ("finetune.head_learning_rate", 0, "greater than 0"),
        ("finetune.patience", 0, "greater than or equal to 1"),
        ("finetune.activations", "float8", "'float32' or 'float16'"),
        ("finetune.draw_views", 3, "boolean"),
    ],
)
def test_settings_of_fine_tuning_out_of_range_are_refused(params, key, given, expected):
    with pytest.raises(ConfigError, match=rf"{key} is {given!r}: .*{expected}"):
        load_study("demo", params, {key: given})


@pytest.mark.parametrize(
    ("key", "given", "read"),
    [
        ("threshold.cost_ratio", 2, 2.0),
        ("finetune.learning_rate", "1e-5", 1e-5),
        ("tune.trials", "5", 5),
        ("tune.trials", 5.0, 5),
    ],
)
def test_numbers_may_be_whole_or_text(params, key, given, read):
    section, name = key.split(".")
    settings = load_study("demo", params, {key: given}).settings
    value = getattr(getattr(settings, section), name)
    assert value == read
    assert type(value) is type(read)


# --- overrides ------------------------------------------------------------------------------------


def test_override_lies_over_the_study(params):
    settings = load_study("demo", params, {"tune.trials": 5, "train.seeds": [9]}).settings
    assert settings.tune.trials == 5
    assert settings.train.seeds == [9]
    assert settings.tune.sensitivity_floor == params["studies"]["demo"]["tune"]["sensitivity_floor"]


def test_override_of_a_whole_section_is_refused(params):
    with pytest.raises(
        ConfigError, match=r"'tune' is a section; name a key in it, for example tune\.KEY=VALUE"
    ):
        load_study("demo", params, {"tune": 5})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("tune.trials=5", ("tune.trials", 5)),
        ("train.seeds=[1, 2]", ("train.seeds", [1, 2])),
        ("split.group_by=slide", ("split.group_by", "slide")),
        ("tune.constraint=null", ("tune.constraint", None)),
        ("embed.weights=a=b.h5", ("embed.weights", "a=b.h5")),
        (" tune.sensitivity_floor =0.9", ("tune.sensitivity_floor", 0.9)),
    ],
)
def test_override_is_read_as_yaml(text, parsed):
    assert parse_override(text) == parsed


def test_override_of_an_exponent_is_read_as_a_number(params):
    key, value = parse_override("finetune.learning_rate=1e-5")
    assert load_study("demo", params, {key: value}).settings.finetune.learning_rate == 1e-5


@pytest.mark.parametrize("text", ["tune.trials", "trials=5", "", "="])
def test_override_of_another_form_shows_the_right_one(text):
    with pytest.raises(
        ConfigError, match=r"is not of the form section\.key=value, for example tune\.trials=5"
    ):
        parse_override(text)


def test_override_with_broken_yaml_is_a_config_error():
    with pytest.raises(ConfigError, match=r"train\.seeds"):
        parse_override("train.seeds=[1, 2")


# --- names that YAML reads as something else ------------------------------------------------------


def _written(tmp_path, old, new):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    return read_params(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("on", "on"),
        ("4", "4"),
        ("-1", "-1"),
        ("1.5", "1.5"),
        ("007", "007"),
        ("1_2", "1_2"),
        ("2024-01-05", "2024-01-05"),
        ("12:30", "12:30"),
        ("1e5", "1e5"),
        ("'true'", "true"),
        ("null", None),
    ],
)
def test_a_class_may_be_called_like_a_number_or_a_word_of_yaml(tmp_path, written, read):
    given = f"positive_class: {written} # of"
    params = _written(tmp_path, "positive_class: null # for", given)
    assert load_study("demo", params).settings.ingest.positive_class == read
    key, value = parse_override(f"ingest.positive_class={written}")
    settings = load_study("demo", read_params(ROOT), {key: value}).settings
    assert settings.ingest.positive_class == read


@pytest.mark.parametrize("word", ["true", "False"])
def test_a_truth_value_in_place_of_a_name_asks_for_quotes(params, word):
    key, value = parse_override(f"ingest.positive_class={word}")
    with pytest.raises(ConfigError, match=f"write it in quotes: '{word.lower()}'"):
        load_study("demo", params, {key: value})
    params["run"]["studies"] = [value]
    with pytest.raises(ConfigError, match=f"write it in quotes: '{word.lower()}'"):
        config.run_studies(params)


@pytest.mark.parametrize("name", ["off", "no", "2024", "007", "1.5"])
def test_a_study_may_be_called_so_too(tmp_path, name):
    params = _written(tmp_path, "\n  breakhis:\n", f"\n  {name}:\n")
    listed = parse_override(f"run.studies=[{name}]")[1]
    params["run"]["studies"] = listed
    assert config.run_studies(params) == [name]
    assert load_study(name, params).name == name


def test_values_of_columns_are_text(params):
    key, value = parse_override("ingest.only={age: 50, smoker: no, 2: 1.0}")
    only = load_study("demo", params, {key: value}).settings.ingest.only
    assert only == {"age": "50", "smoker": "no", "2": "1.0"}


def test_switches_may_still_be_yes_and_no(tmp_path):
    params = _written(tmp_path, "horizontal_flip: true", "horizontal_flip: no")
    assert load_study("chest_xray", params).settings.augment.horizontal_flip is False


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "a: 1\nc: {1: x, '1': y}\n", "a: {no: 1, no: 2}\n"]
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"the key '\w+' stands there twice \(line \d, column \d+\)"
    ):
        read_params(tmp_path)


def test_a_merged_key_may_be_overwritten():
    assert parse_override("tune.a={<<: {x: 1, y: 2}, x: 3}")[1] == {"x": 3, "y": 2}


def test_the_shipped_settings_read_as_in_yaml_1_1():
    plain = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert read_params(ROOT) == plain


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["imagenet", "random", "weights/vgg16.h5"])
def test_weights_by_word_or_path_serve_every_backbone(params, weights):
    embed = load_study("demo", params, {"embed.weights": weights}).settings.embed
    assert {embed.weights_for(name) for name in ("vgg16", "densenet201")} == {weights}


def test_weights_by_mapping_serve_the_backbones_they_name(params):
    embed = load_study(
        "demo", params, {"embed.weights": {"vgg16": "random", "densenet201": "d.h5"}}
    ).settings.embed
    assert embed.weights_for("vgg16") == "random"
    assert embed.weights_for("densenet201") == "d.h5"
    with pytest.raises(
        ConfigError, match=r"does not name 'mobilenetv2' \(it names: vgg16, densenet201\)"
    ):
        embed.weights_for("mobilenetv2")


def test_weights_of_another_kind_are_refused(params):
    with pytest.raises(ConfigError, match=r"embed\.weights"):
        load_study("demo", params, {"embed.weights": {"vgg16": ["a"]}})


# --- files ----------------------------------------------------------------------------------------


def test_root_is_the_nearest_folder_with_params(tmp_path):
    deep = tmp_path / "outer" / "inner" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("{}")
    assert find_root(deep) == tmp_path.resolve()
    (tmp_path / "outer" / "params.yaml").write_text("{}")
    assert find_root(deep) == (tmp_path / "outer").resolve()


def test_root_is_looked_for_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert find_root() == tmp_path.resolve()


def test_no_root_says_where_it_looked(tmp_path):
    with pytest.raises(ConfigError, match=r"No params\.yaml in .* or above it"):
        find_root(tmp_path)


def test_missing_params_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no .*params\.yaml"):
        read_params(tmp_path)


def test_broken_yaml_names_the_line(tmp_path):
    (tmp_path / "params.yaml").write_text("run: {}\nstudies: [\n")
    with pytest.raises(ConfigError, match=r"is not valid YAML: .*\(line 3, column 1\)"):
        read_params(tmp_path)


def test_params_that_are_no_mapping_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("- demo\n")
    with pytest.raises(
        ConfigError, match="holds list, a mapping with run, defaults and studies is expected"
    ):
        read_params(tmp_path)


def test_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("EQUIPOISE_TEST_VALUE", "")
    assert environment.environment("EQUIPOISE_TEST_VALUE") is None
    monkeypatch.setenv("EQUIPOISE_TEST_VALUE", "x")
    assert environment.environment("EQUIPOISE_TEST_VALUE") == "x"


@pytest.mark.parametrize(
    ("overrides", "said", "unsaid"),
    [
        ({"tune.trials": 0}, "Correct tune.trials, which the command line gives.", "params.yaml"),
        (
            {"tune.l2_low": 99.0},
            "Correct tune.l2_low, which the command line gives.",
            "params.yaml",
        ),
        ({"tune.trails": 5}, "'tune.trails' (given on the command line). Did you mean", "params"),
        ({"tun.trials": 5}, "'tun' (given on the command line). Did you mean 'tune'?", "params"),
    ],
)
def test_a_value_of_the_command_line_is_not_looked_for_in_params(overrides, said, unsaid):
    with pytest.raises(ConfigError) as raised:
        config.load_study("made", made.params(), overrides)
    assert said in str(raised.value)
    assert unsaid not in str(raised.value)


def test_each_wrong_value_is_corrected_where_it_was_given():
    params = made.params(tune={"inner_folds": 1})
    with pytest.raises(
        ConfigError, match=r"Correct params\.yaml and tune\.trials, which the command"
    ):
        config.load_study("made", params, {"tune.trials": 0})
