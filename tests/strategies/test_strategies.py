"""One contract over every strategy and small dataset; then what each of them claims."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from imblearn.over_sampling import RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler
from sklearn.utils.class_weight import compute_class_weight

from equipoise.core.errors import ConfigError, TrialFailed
from equipoise.core.records import minority_labels
from equipoise.strategies import base
from equipoise.strategies import base as strategies
from equipoise.strategies.base import TrainRows

VIEWS = 4
COUNTS = {
    "binary": [30, 12],
    "majority is class 1": [9, 25],
    "three classes": [20, 11, 5],
    "equal counts": [14, 14],
    "tiny minority": [40, 1],
    "a class is absent": [12, 0, 7],
}


def train_rows(counts, seed=3, views=VIEWS):
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    patients = rng.integers(0, 1 + len(labels) // 3, len(labels))
    features = rng.normal(size=(len(labels), 4)).astype(np.float32) + labels[:, None]
    return TrainRows(labels, len(counts), views, seed, patients, lambda: features)


def same(plan, other):
    return all(
        np.array_equal(getattr(plan, item.name), getattr(other, item.name)) for item in fields(plan)
    )


def load(name, **settings):
    cls = strategies.load_strategy(name)
    return cls.of({**cls.published(VIEWS, {}), **settings})


def applied(strategy, rows):
    plan = strategy.plan(rows)
    counts = plan.counts(rows.labels, rows.num_classes)
    return plan, counts, strategy.objective(counts)


def range_of(parameter, views=VIEWS):
    return parameter.low, parameter.highest(views)


def at_the_ends(cls):
    """The settings at the low and at the high end of every range, and the published ones."""
    yield {name: parameter.low for name, parameter in cls.parameters().items()}
    yield {name: parameter.highest(VIEWS) for name, parameter in cls.parameters().items()}
    yield cls.published(VIEWS, {})


every = pytest.mark.parametrize("name", strategies.names())
everywhere = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)


def test_the_shipped_strategies_are_found():
    shipped = {
        "baseline",
        "oversample",
        "undersample",
        "class_weight",
        "augment",
        "weighted_augment",
    }
    assert shipped <= set(strategies.names())


@every
@everywhere
def test_plan_draws_train_rows_and_objective_has_a_number_per_class(name, counts):
    rows = train_rows(counts)
    cls = strategies.load_strategy(name)
    for settings in at_the_ends(cls):
        try:
            plan, after, objective = applied(cls.of(settings), rows)
        except TrialFailed:
            assert min(filter(None, counts)) < 6, "only a class of a few images may be too small"
            continue
        assert plan.row.dtype.kind == plan.view.dtype.kind == "i"
        assert plan.row.shape == plan.view.shape
        assert 0 <= plan.row.min() <= plan.row.max() < len(rows.labels)
        assert 0 <= plan.view.min() <= plan.view.max() <= VIEWS
        assert 0 <= plan.partner.min() <= plan.partner.max() < len(rows.labels)
        assert (rows.labels[plan.partner] == rows.labels[plan.row]).all(), (
            "a mixed row has one label"
        )
        assert 0 <= plan.mix.min() <= plan.mix.max() < 1
        assert plan.weight.min() > 0
        assert plan.weight.mean() == pytest.approx(1)
        assert ((after > 0) == (rows.counts > 0)).all(), "no class appears or disappears"
        minority = minority_labels(rows.counts)
        assert np.isin(rows.labels[plan.row[plan.view > 0]], minority).all(), (
            "only the minority has views"
        )
        assert objective.weights.shape == objective.offsets.shape == (len(counts),)
        assert np.isfinite(objective.weights).all()
        assert (objective.weights > 0).all()
        assert objective.focusing >= 0
        assert np.isfinite(objective.offsets).all()


@every
@everywhere
def test_plan_depends_on_the_seed_alone(name, counts):
    try:
        plan = load(name).plan(train_rows(counts, seed=3))
    except TrialFailed as error:
        # A sampler that cannot work on so few rows says so, whatever the seed.
        with pytest.raises(TrialFailed, match=re.escape(str(error))):
            load(name).plan(train_rows(counts, seed=3))
        return
    assert same(plan, load(name).plan(train_rows(counts, seed=3)))


@pytest.mark.parametrize("name", ["oversample", "undersample"])
def test_another_seed_draws_other_rows(name):
    plans = [load(name).plan(train_rows([60, 20], seed=seed)).row for seed in (0, 1, 2**32)]
    assert not np.array_equal(plans[0], plans[1])
    assert np.array_equal(plans[0], plans[2]), "seeds are taken modulo 2**32"


@every
@everywhere
def test_neutral_settings_are_the_baseline_exactly(name, counts):
    rows = train_rows(counts)
    cls = strategies.load_strategy(name)
    neutral = cls.of(cls.neutral())
    plan, _, objective = applied(neutral, rows)
    expected, _, plain = applied(load("baseline"), rows)
    assert same(plan, expected)
    assert np.array_equal(objective.weights, plain.weights)
    assert np.array_equal(objective.offsets, plain.offsets)
    assert objective.focusing == plain.focusing


@pytest.mark.parametrize(
    "name", [name for name in strategies.names() if not name.startswith("imblearn_")]
)
def test_equal_counts_make_every_published_setting_the_baseline(name):
    """Samplers of imbalanced-learn are no part of it: they also clean classes of equal size."""
    rows = replace(train_rows([14, 14]), patients=np.arange(28))
    plan, _, objective = applied(load(name), rows)
    assert same(plan, load("baseline").plan(rows))
    assert objective.weights == pytest.approx(np.ones(2))
    assert objective.offsets[0] == objective.offsets[1]


@every
@pytest.mark.parametrize("views", [1, 3, 8])
def test_published_settings_lie_in_their_ranges_and_neutral_ones_can_be_fixed(name, views):
    cls = strategies.load_strategy(name)
    published, neutral = cls.published(views, {}), cls.neutral()
    assert list(published) == list(neutral) == list(cls.parameters())
    assert [*published, *cls.options()] == [item.name for item in fields(cls)]
    for key, value in published.items():
        low, high = range_of(cls.parameters()[key], views)
        assert low < high
        assert low <= value <= high
    assert cls.published(views, neutral) == neutral, "neutral settings may be fixed"
    outside = []
    for key, value in neutral.items():
        low, high = range_of(cls.parameters()[key], views)
        if not low <= value <= high:
            outside.append(key)
    assert outside == (["log10_one_minus_beta"] if name == "class_balanced" else []), (
        "beta = 0 is a limit"
    )


def test_ranges_are_those_of_the_papers_and_of_the_views():
    described = {
        (name, key): (parameter.published, *range_of(parameter, views=3))
        for name in strategies.names()
        for key, parameter in strategies.load_strategy(name).parameters().items()
        if not name.startswith("imblearn_")
    }
    assert described == {
        ("augment", "copies"): (5, 0, 3),
        ("class_balanced", "log10_one_minus_beta"): (-4.0, -5.0, -2.0),
        ("class_weight", "exponent"): (1.0, 0.0, 1.5),
        ("focal", "gamma"): (2.0, 0.0, 5.0),
        ("logit_adjust", "strength"): (1.0, 0.0, 2.0),
        ("oversample", "target_fraction"): (1.0, 0.0, 1.0),
        ("patient_balanced", "exponent"): (1.0, 0.0, 1.0),
        ("smote", "target_fraction"): (1.0, 0.0, 1.0),
        ("undersample", "target_fraction"): (1.0, 0.0, 1.0),
        ("weighted_augment", "copies"): (5, 0, 3),
        ("weighted_augment", "exponent"): (1.0, 0.0, 1.5),
    }


@pytest.mark.parametrize(
    ("value", "fraction_allows", "count_allows"),
    [
        (0, True, True),
        (0.5, True, False),
        (1, True, True),
        (2, False, True),
        (4, False, False),
        (-7, True, True),
        (True, False, False),
        (None, False, False),
        ("1", False, False),
    ],
)
def test_a_parameter_allows_its_range_and_its_neutral_value(value, fraction_allows, count_allows):
    fraction = base.Parameter(published=0.5, low=0.0, high=1.0, neutral=-7)
    count = base.Parameter(published=2, low=0, high=base.VIEWS, neutral=-7)
    assert fraction.allows(value, views=3) is fraction_allows
    assert count.allows(value, views=3) is count_allows
    assert count.is_integer
    assert not fraction.is_integer


@every
def test_a_setting_that_does_not_exist_is_refused(name):
    with pytest.raises(ConfigError, match=f"no setting 'wrong' of scenario '{name}'"):
        strategies.load_strategy(name).published(VIEWS, {"wrong": 1})


def test_the_nearest_setting_and_scenario_are_named():
    with pytest.raises(ConfigError, match="Did you mean 'target_fraction'"):
        strategies.load_strategy("oversample").published(VIEWS, {"target_fractoin": 1.0})
    with pytest.raises(ConfigError, match="Did you mean 'oversample'"):
        strategies.load_strategy("oversampl")
    with pytest.raises(ConfigError, match="There is no scenario 'base'"):
        strategies.load_strategy("base")


def test_fixed_settings_are_laid_over_the_published_ones():
    published = strategies.load_strategy("weighted_augment").published(VIEWS, {"exponent": 0.5})
    assert published == {"exponent": 0.5, "copies": 4}


@pytest.mark.parametrize("name", ["augment", "weighted_augment"])
def test_views_are_needed_for_augmentation(name):
    with pytest.raises(ConfigError, match=f"'{name}' needs augmented views; set embed.views"):
        strategies.load_strategy(name).published(0, {})


@pytest.mark.parametrize("counts", [[30, 12], [9, 25], [20, 11, 5], [40, 1]])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_oversample_fills_the_part_of_the_gap_it_says(counts, fraction):
    rows = train_rows(counts)
    plan, after, objective = applied(load("oversample", target_fraction=fraction), rows)
    largest = max(counts)
    assert after.tolist() == [round(count + fraction * (largest - count)) for count in counts]
    assert set(plan.row) == set(range(len(rows.labels))), "every image stays"
    assert (objective.weights == 1).all()
    assert (plan.view == 0).all()


@pytest.mark.parametrize("counts", [[30, 12], [9, 25], [20, 11, 5], [40, 1]])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_undersample_leaves_out_the_part_of_the_surplus_it_says(counts, fraction):
    rows = train_rows(counts)
    plan, after, _ = applied(load("undersample", target_fraction=fraction), rows)
    smallest = min(counts)
    assert after.tolist() == [round(count - fraction * (count - smallest)) for count in counts]
    assert len(set(plan.row)) == len(plan.row), "no image twice"


@pytest.mark.parametrize(
    ("name", "sampler", "wanted"),
    [("oversample", RandomOverSampler, max), ("undersample", RandomUnderSampler, min)],
)
@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
@pytest.mark.parametrize("counts", [[30, 12, 6], [5, 40], [8, 8]])
def test_resampled_rows_are_those_of_imbalanced_learn(name, sampler, wanted, seed, counts):
    rows = train_rows(counts, seed=seed)
    target = dict.fromkeys(range(len(counts)), wanted(counts))
    oracle = sampler(sampling_strategy=target, random_state=seed % 2**32)
    oracle.fit_resample(np.arange(sum(counts))[:, None], rows.labels)
    assert np.array_equal(load(name).plan(rows).row, np.sort(oracle.sample_indices_))


@pytest.mark.parametrize(
    ("name", "sampler", "bound"),
    [("oversample", RandomOverSampler, max), ("undersample", RandomUnderSampler, min)],
)
@pytest.mark.parametrize("target_count", [3, 18, 50])
def test_a_target_count_is_in_images_per_class(name, sampler, bound, target_count):
    counts = [30, 12, 6]
    rows = train_rows(counts)
    plan, after, _ = applied(load(name, target_count=target_count), rows)
    target = {label: bound(count, target_count) for label, count in enumerate(counts)}
    assert after.tolist() == list(target.values())
    oracle = sampler(sampling_strategy=target, random_state=rows.seed)
    oracle.fit_resample(np.arange(sum(counts))[:, None], rows.labels)
    assert np.array_equal(plan.row, np.sort(oracle.sample_indices_))
    half = load(name, target_count=target_count, target_fraction=0.5)
    _, after, _ = applied(half, rows)
    assert after.tolist() == [
        round(count + 0.5 * (target[label] - count)) for label, count in enumerate(counts)
    ]


@pytest.mark.parametrize("value", [0, -4, 10.5, "many", True])
def test_a_target_count_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match=r"target_count is .*; a whole number from 1 on"):
        strategies.load_strategy("oversample").published(VIEWS, {"target_count": value})


def test_a_target_count_stands_among_the_settings_only_where_it_is_set():
    cls = strategies.load_strategy("undersample")
    assert cls.published(VIEWS, {}) == {"target_fraction": 1.0}
    fixed = cls.published(VIEWS, {"target_count": 4000})
    assert fixed == {"target_fraction": 1.0, "target_count": 4000}
    assert cls.of({**fixed, "l2": 0.1}).target_count == 4000


@pytest.mark.parametrize("counts", [[1349, 3883], [20, 11, 5], [40, 1]])
def test_class_weight_1_is_balanced_of_scikit_learn(counts):
    rows = train_rows(counts)
    _, _, objective = applied(load("class_weight"), rows)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=rows.labels)
    assert objective.weights == pytest.approx(expected)


def test_class_weight_known_values_and_exponents():
    assert base.inverse_frequency(np.array([1349, 3883]), 1.0) == pytest.approx(
        [1.939214, 0.673706], abs=1e-6
    )
    assert base.inverse_frequency(np.array([100, 900]), 1.0) == pytest.approx(
        [5, 0.555556], abs=1e-6
    )
    for exponent in (0.0, 0.5, 1.5):
        weights = base.inverse_frequency(np.array([100, 900]), exponent)
        assert weights[0] / weights[1] == pytest.approx(9**exponent)
        assert np.average(weights, weights=[100, 900]) == pytest.approx(1), (
            "the mean over draws is 1"
        )


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("counts", [[30, 12], [9, 25], [20, 11, 5]])
def test_augment_adds_each_view_of_each_minority_image_once(counts, copies):
    rows = train_rows(counts)
    plan = load("augment", copies=copies).plan(rows)
    pairs = set(zip(plan.row.tolist(), plan.view.tolist()))
    minority = np.flatnonzero(np.isin(rows.labels, minority_labels(rows.counts))).tolist()
    plain = {(row, 0) for row in range(len(rows.labels))}
    assert pairs == plain | {(row, view) for row in minority for view in range(1, copies + 1)}
    assert len(plan.row) == len(pairs)


def test_weighted_augment_weighs_by_the_counts_after_the_plan():
    rows = train_rows([30, 12])
    _, after, objective = applied(load("weighted_augment", copies=1), rows)
    assert after.tolist() == [30, 24]
    assert objective.weights == pytest.approx([54 / 60, 54 / 48])
    _, after, objective = applied(load("weighted_augment", copies=4), rows)
    assert after.tolist() == [30, 60]
    assert objective.weights[0] > objective.weights[1], (
        "never corrects twice for the same imbalance"
    )


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("oversample", {"target_fraction": 2.0}),
        ("oversample", {"target_fraction": "high"}),
        ("undersample", {"target_fraction": -0.1}),
        ("class_weight", {"exponent": -1}),
        ("class_weight", {"exponent": None}),
        ("augment", {"copies": 1.5}),
        ("augment", {"copies": -1}),
        ("weighted_augment", {"copies": True}),
    ],
)
def test_a_fixed_setting_out_of_range_is_refused(name, fixed):
    (setting,) = fixed
    with pytest.raises(ConfigError, match=rf"scenarios\.{name}\.{setting} is .*; a number from 0"):
        strategies.load_strategy(name).published(5, fixed)


# --- switched off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", strategies.names())
def test_neutral_settings_are_a_remedy_that_was_switched_off_and_published_ones_are_not(name):
    cls = strategies.load_strategy(name)
    has_parameters = bool(cls.parameters())
    assert cls.switched_off({**cls.neutral(), "l2": 0.1}, fixed={}) is has_parameters
    assert cls.switched_off({**cls.published(VIEWS, {}), "l2": 0.1}, fixed={}) is False


def test_every_parameter_has_to_be_neutral_and_one_of_them_chosen_by_the_search():
    cls = strategies.load_strategy("weighted_augment")
    off = {"exponent": 0.0, "copies": 0}
    assert cls.switched_off(off, fixed={"copies": 0}) is True
    assert cls.switched_off(off, fixed=off) is False, "the user did it"
    assert cls.switched_off({**off, "copies": 1}, fixed={}) is False
    assert cls.switched_off({**off, "exponent": 0.015}, fixed={}) is True, "1 % of 0 to 1.5"
    assert cls.switched_off({**off, "exponent": 0.016}, fixed={}) is False


@pytest.mark.parametrize("name", strategies.names())
def test_what_counts_as_switched_off_changes_next_to_nothing(name):
    """At 1 % of the range from the neutral value, class weights and counts are within 6 % of the baseline's."""
    cls = strategies.load_strategy(name)
    near = {}
    for parameter_name, item in cls.parameters().items():
        near[parameter_name] = item.neutral
        if not item.is_integer and item.allows(item.neutral + 0.01, VIEWS):
            near[parameter_name] = item.neutral + 0.01 * (item.high - item.low)
    rows = train_rows([300, 30])
    _, counts, objective = applied(cls(**near), rows)
    _, plain_counts, plain = applied(cls(**cls.neutral()), rows)
    assert counts == pytest.approx(plain_counts, rel=0.1)
    assert objective.weights == pytest.approx(plain.weights, rel=0.06)
    assert objective.offsets - objective.offsets[0] == pytest.approx(
        plain.offsets - plain.offsets[0], abs=0.06
    )
