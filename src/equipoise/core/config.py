"""params.yaml -> frozen settings. Nothing else reads them, and no number has a second home here."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from equipoise.core import yaml_text
from equipoise.core.environment import environment
from equipoise.core.errors import ConfigError, unknown_name

PARAMS = "params.yaml"
#: The params.yaml of a new project, made from that of the checkout by `.ci/templates.py`.
PACKAGED_PARAMS = Path(__file__).with_name("params.yaml")


#: Sections of the settings that a result depends on beyond its parents.
#: Overrides may touch these only.
SCENARIO_SECTIONS = ("tune", "train", "finetune", "calibrate", "threshold", "compare")


_short = reprlib.repr
#: So many wrong settings are told at once.
_PROBLEMS_MAX = 10


def _no_truth_value(value: Any) -> Any:
    # Pydantic's strict mode would also refuse 1e-3, which YAML 1.1 reads as text, and 5.0 for 5.
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


def _as_text(value: Any) -> Any:
    # A class or a study may be called 4 or 2024: YAML makes numbers of these.
    if isinstance(value, bool):
        word = str(value).lower()
        raise ValueError(
            f"YAML reads {word} as a truth value; where it is a name write it in quotes: '{word}'"
        )
    if isinstance(value, int | float):
        return str(value)
    return value


Text = Annotated[str, BeforeValidator(_as_text)]


Integer = Annotated[int, BeforeValidator(_no_truth_value)]


Number = Annotated[float, BeforeValidator(_no_truth_value)]


Fraction = Annotated[Number, Field(gt=0, lt=1)]


NonNegative = Annotated[Number, Field(ge=0)]


Positive = Annotated[Number, Field(gt=0)]


Count = Annotated[Integer, Field(ge=1)]


Seed = Annotated[Integer, Field(ge=0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, and values cannot change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Engine(Section):
    """Where jobs run side by side: processes of this machine, or workers of a Dask scheduler."""

    backend: Literal["loky", "dask"] = "loky"
    scheduler: str | None = None
    workers: Integer = 1

    @model_validator(mode="after")
    def _usable(self) -> Engine:
        if self.workers < -1 or self.workers == 0:
            raise ValueError(
                f"workers is {self.workers}; -1 (every core) or at least 1 is expected"
            )
        if self.scheduler and self.backend != "dask":
            raise ValueError("scheduler is set, and only backend: dask has one")
        return self

    @property
    def stays_here(self) -> bool:
        """Whether every job runs in this process."""
        return self.backend == "loky" and self.workers == 1

    @property
    def address(self) -> str | None:
        """The scheduler to join; None when workers are started on this machine."""
        if self.backend != "dask":
            return None
        return environment("EQUIPOISE_DASK_SCHEDULER") or self.scheduler


class Phantom(Section):
    """How the demo's images are drawn (`ingest/datasets/phantom.py`).

    Lengths are fractions of the image width.
    """

    patients: Count
    mean_images_per_patient: Annotated[Number, Field(ge=1)]
    opacity_patient_fraction: Fraction
    size_px: Annotated[Integer, Field(ge=32)]
    opacity_contrast: NonNegative
    opacity_speckle: NonNegative
    radius_low_fraction: Fraction
    radius_high_fraction: Fraction
    patient_effect: NonNegative
    noise: NonNegative
    seed: Seed


#: Column of patient ids in a table that names no other.
PATIENT_COLUMN = "patient_id"


def _named_columns(value: Any) -> Any:
    """A path alone is a table that has to have patient ids."""
    if isinstance(value, dict):
        _require_known_keys(value, ImageTable.model_fields, "ingest.table.")
    return {"file": value, "patient": PATIENT_COLUMN} if isinstance(value, str) else value


def _in_a_list(value: Any) -> Any:
    if value is None:
        return []
    return value if isinstance(value, list | dict) else [value]


class ImageTable(Section):
    """The columns of a CSV that says what the images of own folders show.

    Attributes:
        file: Its path inside the raw folder.
        image: Column with the path, the name or the id of an image.
        label: Column with the class; several: one for each class, which holds 1 or 0; none: the
            folders name the classes.
        patient: Column of patient ids; null: `patient_id`, and where there is none every image
            counts as a patient.
        split: Column with the published side; null: the folders name it, if they do.
    """

    file: Text
    image: Text = "image"
    label: Annotated[list[Text], BeforeValidator(_in_a_list)] = []
    patient: Text | None = None
    split: Text | None = None


class Ingest(Section):
    """Where the originals lie, which question is asked of them, and what happens to copies."""

    dataset: Text | None
    raw: Text | None
    skip: list[Text]
    keep: list[Text]
    task: Text | None
    only: dict[str, Text]
    duplicates: Literal["drop", "drop_near", "keep"]
    near_copies: bool
    trusted: list[Text]
    pseudonymise: bool | None
    positive_class: Text | None
    table: Annotated[ImageTable | None, BeforeValidator(_named_columns)]
    columns: list[Text]
    aliases: dict[str, Text]
    patient_folder: Literal["below", "above"] | None
    window: Annotated[list[Number], Field(min_length=2, max_length=2)] | None

    @field_serializer("aliases")
    def _without_ids(self, aliases: dict[str, str]) -> str:
        # Settings are kept beside results, where ids may be hidden: a digest tells a change, and no id.
        if not aliases:
            return ""
        text = json.dumps(aliases, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @model_validator(mode="after")
    def _ordered(self) -> Ingest:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("window: [low, high] with low < high is expected")
        return self


class Split(Section):
    """How patients are divided.

    Fractions are of patients: test is taken first, and val out of the rest. K-fold has no val.
    `repeats` may be given as one number, or as a mapping that has one for each scheme.
    """

    scheme: Literal["holdout", "kfold", "official"]
    group_by: Text | None
    val_fraction: Fraction
    test_fraction: Fraction
    folds: Annotated[Integer, Field(ge=2)]
    repeats: Count
    seed: Seed

    @model_validator(mode="before")
    @classmethod
    def _repeats_of_the_scheme(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take from a mapping of repeats what stands under the scheme."""
        repeats = values.get("repeats")
        if not isinstance(repeats, dict):
            return values
        scheme = values.get("scheme")
        if scheme not in repeats:
            raise ValueError(
                f"repeats names {', '.join(map(str, repeats)) or 'no scheme'}, "
                f"and the scheme is {scheme}; give it a number there, or one number for all"
            )
        return values | {"repeats": repeats[scheme]}


class Augment(Section):
    """What one augmented view may change, see `embed/augment.py`."""

    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotation_degrees: Annotated[Number, Field(ge=0, le=180)]
    zoom_fraction: Annotated[Number, Field(ge=0, lt=0.5)]
    shift_fraction: Annotated[Number, Field(ge=0, lt=0.5)]
    brightness_fraction: Annotated[Number, Field(ge=0, lt=1)]
    contrast_fraction: Annotated[Number, Field(ge=0, lt=1)]
    stain_fraction: Annotated[Number, Field(ge=0, lt=1)]
    seed: Seed


#: A name that folders and stages are called after.
FolderName = Annotated[str, Field(pattern=r"^\w[\w-]{0,99}$")]


class Embed(Section):
    """The one pass of the backbone, or where vectors lie that other programs made.

    Attributes:
        features: Name of a backbone -> file or folder of its vectors, see `embed/formats.py`.
        pool: What is made of several rows of one image; null refuses them.
    """

    weights: str | dict[str, str]
    features: dict[FolderName, Text]
    pool: Literal["mean", "max"] | None
    image_size_px: Annotated[Integer, Field(ge=32)]
    views: Annotated[Integer, Field(ge=0)]
    views_of: Literal["minority", "all"]
    batch_size: Count
    dtype: Literal["float32", "float16"]
    mixed_precision: Literal["float16", "bfloat16"] | None
    jpeg_draft: bool

    def weights_for(self, backbone: str) -> str:
        """Return the word or path for one backbone.

        Raises:
            ConfigError: When `weights` is a mapping that does not name the backbone.
        """
        if isinstance(self.weights, str):
            return self.weights
        if backbone not in self.weights:
            named = ", ".join(self.weights) or "nothing"
            raise ConfigError(
                f"embed.weights is a mapping that does not name '{backbone}' (it names: {named}). "
                f"Add `{backbone}: imagenet`, `random` or a path."
            )
        return self.weights[backbone]


class Constraint(Section):
    """A bound that a trial should meet, at threshold 0.5 on raw probabilities."""

    metric: str
    at_least: Number


class Tune(Section):
    """The search, the same effort for every scenario."""

    trials: Count
    inner_folds: Annotated[Integer, Field(ge=2)]
    objective: str
    sensitivity_floor: Fraction
    constraint: Constraint | None
    mode: Literal["probe", "finetune"]
    l2_low: Positive
    l2_high: Positive
    l2_first: Annotated[list[Positive], Field(min_length=1)]
    batch_trials: Count
    gain_resamples: Annotated[Integer, Field(ge=20)]

    @model_validator(mode="after")
    def _ordered(self) -> Tune:
        outside = [value for value in self.l2_first if not self.l2_low <= value <= self.l2_high]
        if self.l2_low >= self.l2_high or outside:
            raise ValueError(
                "l2_low < l2_high, and every value of l2_first between them, is expected"
            )
        return self


class Train(Section):
    """How the final models are fitted."""

    mode: Literal["probe", "finetune"]
    seeds: Annotated[list[Seed], Field(min_length=1)]


class Finetune(Section):
    """The last mile: the same plan and objective for the last block, or the whole network, from the solved head.

    Attributes:
        unfreeze: What is trained beside the head. What lies below the last block is computed once
            for every picture and view, and kept.
        activations: How it is kept. float16 takes half the disk; predictions are then made from
            the pixels, because the served model does not round.
        patience: Evaluations without a better one after which a training ends; null never ends early.
        learning_rate: Of the topmost layer of what is unfrozen, at its highest.
        head_learning_rate: Of the head, per standardised feature, at its highest.
        layer_decay: Factor of the learning rate from each layer to the one below.
        average_decay: Share of the average of the weights that is kept from one step to the next; the
            average is what is evaluated and kept.
        draw_views: Take a view by chance, the plain one included, for every plain image that a plan
            draws.
    """

    unfreeze: Literal["last_block", "all"]
    activations: Literal["float32", "float16"]
    steps: Count
    evaluate_every_steps: Count
    patience: Count | None
    batch_size: Count
    learning_rate: Positive
    head_learning_rate: Positive
    layer_decay: Annotated[Number, Field(gt=0, le=1)]
    average_decay: Annotated[Number, Field(ge=0, lt=1)]
    draw_views: bool
    warmup_fraction: Annotated[Number, Field(ge=0, lt=1)]
    freeze_batch_norm: bool
    mixed_precision: bool
    stop_fraction: Fraction


class Calibrate(Section):
    """The calibrator every scenario gets."""

    min_patients: Annotated[Integer, Field(ge=2)]


class Threshold(Section):
    """The rule by which the operating point is locked, outside test."""

    rule: Literal["sensitivity_floor", "youden", "cost"]
    cost_ratio: Positive


class Compare(Section):
    """The paired comparison against the baseline; the level of every interval is 1 - `alpha`.

    `margin` is the difference in `primary` that nobody would care about.
    """

    primary: str
    margin: Fraction
    alpha: Fraction
    resamples: Annotated[Integer, Field(ge=100)]
    permutations: Annotated[Integer, Field(ge=20)]
    #: Excluded from digests, because showing mistakes changes no number.
    mistakes: Annotated[Integer | None, Field(ge=0, exclude=True)]
    seed: Seed


class Tracking(Section):
    """Which trials are mirrored into MLflow as child runs."""

    trials: Literal["all", "best", "none"]


class Promote(Section):
    """Bounds of the gates between challenger and champion."""

    non_inferiority_margin: Annotated[Number, Field(ge=0, lt=1)]
    sensitivity_low_at_least: Annotated[Number, Field(ge=0, le=1)]
    calibration_slope: tuple[Positive, Positive]
    min_patients: Count

    @model_validator(mode="after")
    def _ordered(self) -> Promote:
        if self.calibration_slope[0] > self.calibration_slope[1]:
            raise ValueError("calibration_slope: [lowest, highest] is expected")
        return self


class Settings(Section):
    """Everything one study is run with."""

    phantom: Phantom | None
    ingest: Ingest
    split: Split
    augment: Augment
    embed: Embed
    tune: Tune
    train: Train
    finetune: Finetune
    calibrate: Calibrate
    threshold: Threshold
    compare: Compare
    tracking: Tracking
    promote: Promote

    def sections(self, *names: str) -> dict[str, Any]:
        """Return plain data of some sections, as kept beside results and mirrored into MLflow."""
        values: dict[str, Any] = {}
        for name in names:
            section = getattr(self, name)
            values[name] = section.model_dump() if section else None
        return values


class Judging(Section):
    """What `equipoise judge` compares predictions by, without a study.

    Attributes:
        compare: Endpoint, margin, level and resamples.
        sensitivity_floor: The sensitivity at which specificity is read.
        cost_ratio: What a missed positive costs, in false alarms; for net benefit.
        scenarios: Of `run`: rivals of these names are judged in this order.
    """

    compare: Compare
    sensitivity_floor: Fraction
    cost_ratio: Positive
    scenarios: tuple[str, ...]


class Study(Section):
    """A study's name and settings, and where its files lie.

    Attributes:
        root: Folder that holds params.yaml; every path of the study lies below it.
    """

    name: str
    settings: Settings
    scenario_settings: dict[str, dict[str, Any]]
    backbones: tuple[str, ...]
    scenarios: tuple[str, ...]
    engine: Engine
    root: Path = Path()

    @property
    def dataset(self) -> str:
        """Name of the dataset file."""
        return self.settings.ingest.dataset or self.name

    @property
    def raw(self) -> Path:
        """Folder of the untouched originals."""
        return self.root / (self.settings.ingest.raw or f"data/raw/{self.name}")

    @property
    def manifest_path(self) -> Path:
        """One row per usable image."""
        return self.root / f"data/manifest/{self.name}.parquet"

    @property
    def places_path(self) -> Path:
        """The paths of the images when ids are hashed; never tracked and never mirrored."""
        return self.root / f"data/local/{self.name}.csv"

    @property
    def splits_path(self) -> Path:
        """One row per image, repeat and fold."""
        return self.root / f"data/splits/{self.name}.parquet"

    def features_path(self, backbone: str) -> Path:
        """Folder of one backbone's features."""
        return self.root / f"data/features/{self.name}/{backbone}"

    def result_path(self, backbone: str, scenario: str) -> Path:
        """Folder of one result."""
        return self.root / f"results/{self.name}/{backbone}/{scenario}"

    def timing_path(self, result_digest: str) -> Path:
        """When one result was made on this machine."""
        return self.cache_path / f"timings/{result_digest}.json"

    @property
    def reports_path(self) -> Path:
        """Folder of the comparison and its page."""
        return self.root / f"reports/{self.name}"

    @property
    def cache_path(self) -> Path:
        """Folder of what can be made again: shards, searches, decoded images; not in DVC."""
        return self.root / "data/cache"


def find_root(start: Path | None = None) -> Path:
    """Return the folder that holds params.yaml: `start`, or the nearest folder above it.

    Args:
        start: Where to look first; the working folder when left out.

    Raises:
        ConfigError: When there is none.
    """
    start = (start or Path()).resolve()
    root = nearest_root(start)
    if root is None:
        raise ConfigError(
            f"No {PARAMS} in {start} or above it. Run Equipoise inside a project (`equipoise init` makes one), or name "
            f"one with --root."
        )
    return root


def nearest_root(start: Path) -> Path | None:
    """Return the folder that holds params.yaml: `start`, or the nearest above it; None where there is none."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / PARAMS).is_file():
            return folder
    return None


def read_params(root: Path = Path()) -> dict[str, Any]:
    """Read params.yaml as plain data.

    Raises:
        ConfigError: When it is missing, is not valid YAML, or holds something else than a mapping.
    """
    return _read_mapping(Path(root) / PARAMS)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {path}. Run Equipoise inside a project.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    params = yaml_text.parse(text, str(path))
    if not isinstance(params, dict):
        raise ConfigError(
            f"{path} holds {type(params).__name__}, a mapping with run, defaults and studies is expected."
        )
    return params


def load_study(
    name: str,
    params: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    root: Path = Path(),
) -> Study:
    """Read the settings of one study and check them.

    Args:
        name: A key of `studies` in params.yaml.
        params: Contents of params.yaml; read from `root` when left out.
        overrides: Dotted keys and values laid over the study, for example `{"tune.trials": 5}`.
        root: Folder that holds params.yaml.

    Raises:
        ConfigError: For a value out of range, and for an unknown study, section or key; it
            names the nearest one that exists.
    """
    if params is None:
        params = read_params(root)
    _require_known_keys(params, _TOP_KEYS, "")
    sections = _sections_of_study(name, params)
    _lay_overrides(sections, overrides or {})
    _require_complete(sections, name)
    _require_every_section(params["studies"][name], name)
    run = _mapping(params, "run")
    _require_known_keys(run, _RUN_KEYS, "run.")
    engine = _mapping(params, "engine")
    _require_known_keys(engine, Engine.model_fields, "engine.")
    scenarios = _mapping(params, "scenarios")
    contents = {
        "name": name,
        "settings": sections,
        "scenario_settings": {scenario: own or {} for scenario, own in scenarios.items()},
        "backbones": _names(run, "backbones"),
        "scenarios": _names(run, "scenarios"),
        "engine": engine,
        "root": root,
    }
    try:
        return Study.model_validate(contents)
    except ValidationError as error:
        raise ConfigError(_validation_text(name, error, overrides or {})) from error


def judging_settings(root: Path | None, overrides: dict[str, Any]) -> Judging:
    """Read what predictions are judged by: the defaults of the project, or else those that come with the program.

    Args:
        root: Folder that holds params.yaml; None outside of any project.
        overrides: Dotted keys and values laid over them, for example `{"compare.margin": 0.02}`.

    Raises:
        ConfigError: For a value out of range, and for a key that does not exist.
    """
    params = _params_or_packaged(root)
    sections = copy.deepcopy(_mapping(params, "defaults"))
    _lay_overrides(sections, overrides)
    for section in ("compare", "tune", "threshold"):
        model = _section_model(section)
        _require_known_keys(sections.get(section), model.model_fields, f"defaults.{section}.")
    contents = {
        "compare": sections["compare"],
        "sensitivity_floor": sections["tune"].get("sensitivity_floor"),
        "cost_ratio": sections["threshold"].get("cost_ratio"),
        "scenarios": _names(_mapping(params, "run"), "scenarios"),
    }
    try:
        return Judging.model_validate(contents)
    except ValidationError as error:
        problems = _problems_text(error)
        raise ConfigError(f"Predictions cannot be judged by these settings. {problems}.") from error


def study_of_arrays(
    name: str,
    backbone: str,
    root: Path,
    overrides: dict[str, Any],
    scenario_settings: dict[str, dict[str, Any]],
    workers: int = 1,
) -> Study:
    """Make a study that is in no params.yaml, with the defaults that come with the program.

    Args:
        name: Of the study.
        backbone: What its features are called; they count as imported ones.
        root: Folder below which caches lie.
        overrides: Dotted keys and values laid over the defaults, for example `{"tune.trials": 5}`.
        scenario_settings: Name of each scenario -> settings that are fixed instead of searched.
        workers: Processes.

    Raises:
        ConfigError: For a value out of range, and for a section or key that does not exist.
    """
    sections = copy.deepcopy(_mapping(packaged_params(), "defaults"))
    _lay_overrides(sections, {"embed.features": {backbone: "in memory"}, **overrides})
    _require_complete(sections, name)
    contents = {
        "name": name,
        "settings": sections,
        "scenario_settings": scenario_settings,
        "backbones": (backbone,),
        "scenarios": tuple(scenario_settings),
        "engine": {"workers": workers},
        "root": root,
    }
    try:
        return Study.model_validate(contents)
    except ValidationError as error:
        problems = _problems_text(error)
        raise ConfigError(f"Arrays cannot be studied by these settings. {problems}.") from error


def _params_or_packaged(root: Path | None) -> dict[str, Any]:
    """The contents of params.yaml, or of the packaged file where it is none of ours: every DVC project has one."""
    if root is not None:
        params = read_params(root)
        if {"run", "defaults"} <= set(params):
            return params
    return packaged_params()


def packaged_params() -> dict[str, Any]:
    """The contents of the params.yaml that a new project begins with: every default, and no study."""
    return _read_mapping(PACKAGED_PARAMS)


def run_studies(params: dict[str, Any]) -> list[str]:
    """Return the names of the studies that the pipeline runs, from the contents of params.yaml.

    Raises:
        ConfigError: When there is none, or one that `studies` does not have; it names the nearest.
    """
    names = _names(_mapping(params, "run"), "studies")
    studies = _mapping(params, "studies")
    for name in names:
        if name not in studies:
            raise unknown_name("study", name, studies, " of run.studies in params.yaml")
    return list(names)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `section.key=value`; the value is read as YAML.

    >>> parse_override("tune.trials=5")
    ('tune.trials', 5)
    """
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(
            f"'{text:.100}' is not of the form section.key=value, for example tune.trials=5."
        )
    return key.strip(), yaml_text.parse(value, f"'{text:.100}'")


# --- putting the settings of a study together -----------------------------------------------------


_TOP_KEYS = ("run", "scenarios", "engine", "defaults", "studies")
_RUN_KEYS = ("studies", "backbones", "scenarios")
#: Follows the name of a setting that does not come from params.yaml.
_ON_COMMAND_LINE = " (given on the command line)"


def _sections_of_study(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the default sections, with the study's own values laid over them key by key."""
    studies = _mapping(params, "studies")
    if name not in studies:
        raise unknown_name("study", name, studies)
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(
            f"The study name {_short(name)} names files: letters, digits, '_', '-' and '.' are expected."
        )
    defaults = _mapping(params, "defaults")
    _require_sections(defaults, "defaults.", name)
    own = studies[name] or {}
    _require_sections(own, f"studies.{name}.", name)
    sections = copy.deepcopy(defaults)
    for section, values in own.items():
        sections[section] = (sections.get(section) or {}) | (values or {})
    return sections


def _require_sections(sections: Any, prefix: str, study: str) -> None:
    """Raise a ConfigError unless these are sections that exist, each a mapping or empty."""
    _require_known_keys(sections, Settings.model_fields, prefix)
    for section, values in sections.items():
        if not isinstance(values, dict | None):
            raise ConfigError(
                f"Section '{section}' of study '{study}' is {_short(values)}, a mapping is expected."
            )


def _require_every_section(own: dict[str, Any] | None, study: str) -> None:
    """Raise a ConfigError for a section that a study leaves out: DVC depends on each of them."""
    missing = [section for section in Settings.model_fields if section not in (own or {})]
    if missing:
        lines = ", ".join(f"`{section}: {{}}`" for section in missing)
        raise ConfigError(
            f"Study '{study}' in params.yaml leaves out {', '.join(missing)}. Write {lines} under studies.{study}: "
            f"an empty section takes the defaults, and DVC wants each to be there."
        )


def _lay_overrides(sections: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Put the values of dotted keys into the sections."""
    for dotted_key, value in overrides.items():
        section, _, key = dotted_key.partition(".")
        if section not in Settings.model_fields:
            raise unknown_name("section", section, Settings.model_fields, _ON_COMMAND_LINE)
        if not key:
            raise ConfigError(
                f"'{dotted_key:.100}' is a section; name a key in it, for example {section}.KEY=VALUE."
            )
        if key not in _section_model(section).model_fields:
            known = [f"{section}.{name}" for name in _section_model(section).model_fields]
            raise unknown_name("key", dotted_key, known, _ON_COMMAND_LINE)
        sections[section] = (sections.get(section) or {}) | {key: value}


def _require_complete(sections: dict[str, Any], study: str) -> None:
    """Raise a ConfigError unless every section is there and has only known keys.

    The phantom section may be empty, and becomes None then.
    """
    sections["phantom"] = sections.get("phantom") or None
    for section in Settings.model_fields:
        values = sections.get(section)
        if values is not None:
            _require_known_keys(
                values, _section_model(section).model_fields, f"studies.{study}.{section}."
            )
        elif section != "phantom":
            raise ConfigError(f"params.yaml lacks defaults.{section}.")


def _section_model(section: str) -> type[Section]:
    if section == "phantom":
        return Phantom
    return Settings.model_fields[section].annotation  # type: ignore[return-value]


# --- what stands where in params.yaml -------------------------------------------------------------


def _mapping(params: dict[str, Any], key: str) -> dict[str, Any]:
    value = params.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"params.yaml needs a mapping under '{key}', it holds {_short(value)}.")
    return value


#: A name for each list under `run`.
_EXAMPLES = {"studies": "demo", "backbones": "densenet201", "scenarios": "baseline"}


def _names(run: dict[str, Any], key: str) -> tuple[str, ...]:
    """Return the names listed under a key of `run`, each once."""
    names = run.get(key)
    if not isinstance(names, list) or not names:
        raise _no_names(names, key)
    return tuple(dict.fromkeys(_name(name, names, key) for name in names))


def _name(value: Any, names: list[Any], key: str) -> str:
    """One of the names listed under a key of `run`; a number is the text that stands for it."""
    if isinstance(value, bool):
        word = str(value).lower()
        raise ConfigError(
            f"run.{key} holds {word}, which YAML reads as a truth value; write it in quotes: '{word}'."
        )
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise _no_names(names, key)
    return value


def _no_names(value: Any, key: str) -> ConfigError:
    return ConfigError(
        f"run.{key} in params.yaml is {_short(value)}, a list of one name or more is expected, "
        f"for example [{_EXAMPLES[key]}]."
    )


def _require_known_keys(values: Any, known: Collection[str], prefix: str) -> None:
    """Raise a ConfigError, with the nearest name, for a key that does not exist.

    Args:
        values: Should be a mapping.
        known: The keys that exist.
        prefix: What stands in front of the keys in messages, for example "run.".
    """
    if not isinstance(values, dict):
        raise ConfigError(
            f"params.yaml needs a mapping under '{prefix.rstrip('.')}', it holds {_short(values)}."
        )
    for key in values:
        if key not in known:
            known_with_prefix = [f"{prefix}{name}" for name in known]
            raise unknown_name("key", f"{prefix}{key}", known_with_prefix, " in params.yaml")


def _validation_text(study: str, error: ValidationError, overrides: dict[str, Any]) -> str:
    """Say what is wrong, with the place and the value of up to ten settings, and where to correct it."""
    places = {_place(_where(item), overrides) for item in error.errors()[:_PROBLEMS_MAX]}
    correct = " and ".join(sorted(places))
    problems = _problems_text(error)
    return f"Settings of study '{study}' cannot be used. {problems}. Correct {correct}."


def _problems_text(error: ValidationError) -> str:
    """The first settings that are wrong, each with its value."""
    problems = []
    for item in error.errors()[:_PROBLEMS_MAX]:
        problems.append(f"{_where(item)} is {_short(item['input'])}: {_reason(item)}")
    return "; ".join(problems)


def _reason(item: Any) -> str:
    """Why pydantic or a check of ours refuses a setting; `item` as of `_where`."""
    return str(item["msg"]).removeprefix("Value error, ")


def _where(item: Any) -> str:
    """The dotted key of a setting that is wrong; `item` is of `ValidationError.errors`."""
    return ".".join(str(part) for part in item["loc"] if part != "settings")


def _place(where: str, overrides: dict[str, Any]) -> str:
    """Where a setting, or one of those that do not fit together in a section, was given."""
    for key in overrides:
        if f"{where}.".startswith(f"{key}.") or key.startswith(f"{where}."):
            return f"{key}, which the command line gives"
    return "params.yaml"
