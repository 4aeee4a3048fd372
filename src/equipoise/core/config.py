"""params.yaml -> frozen settings. Nothing else reads YAML, and no number has a second home here."""

from __future__ import annotations

import copy
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from equipoise.core.environment import environment
from equipoise.core.errors import ConfigError, unknown_name

PARAMS = "params.yaml"


#: The shipped file has about 250.
_VALUES_MAX = 20_000


#: Sections of the settings that a result depends on beyond its parents; overrides may touch these only.
SCENARIO_SECTIONS = ("tune", "train", "finetune", "calibrate", "threshold", "compare")


_short = reprlib.repr


Fraction = Annotated[float, Field(gt=0, lt=1)]


NonNegative = Annotated[float, Field(ge=0)]


Positive = Annotated[float, Field(gt=0)]


Count = Annotated[int, Field(ge=1)]


Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values cannot change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            if isinstance(values.get(name), bool) and "bool" not in str(field.annotation):
                raise ValueError(f"{name} is {values[name]}, which is neither a number nor a name")
        return values


class Engine(Section):
    """Where jobs run side by side: processes of this machine, or the workers of a Dask scheduler."""

    backend: Literal["loky", "dask"] = "loky"
    scheduler: str | None = None
    workers: int = 1

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
    def address(self) -> str | None:
        """The scheduler to join; None starts workers on this machine."""
        return (
            environment("EQUIPOISE_DASK_SCHEDULER") or self.scheduler
            if self.backend == "dask"
            else None
        )


class Phantom(Section):
    """How the demo's images are drawn (`datasets/phantom.py`). Lengths are fractions of the image width."""

    patients: Count
    mean_images_per_patient: Annotated[float, Field(ge=1)]
    opacity_patient_fraction: Fraction
    size_px: Annotated[int, Field(ge=32)]
    opacity_contrast: NonNegative
    opacity_speckle: NonNegative
    radius_low_fraction: Fraction
    radius_high_fraction: Fraction
    patient_effect: NonNegative
    noise: NonNegative
    seed: Seed


class Ingest(Section):
    """Where the originals lie, what is asked of them, and what becomes of copies."""

    dataset: str | None
    raw: str | None
    task: str | None
    only: dict[str, str]
    duplicates: Literal["drop", "drop_near", "keep"]
    trusted: list[str]
    pseudonymise: bool | None
    positive_class: str | None
    table: str | None
    columns: list[str]


class Split(Section):
    """How patients are divided. Fractions are of patients; test first, val out of the rest."""

    scheme: Literal["holdout", "kfold", "official"]
    group_by: str | None
    val_fraction: Fraction
    test_fraction: Fraction
    folds: Annotated[int, Field(ge=2)]
    repeats: Count
    seed: Seed


class Augment(Section):
    """What one augmented view may change, see `augment.py`."""

    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    zoom_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    shift_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    brightness_fraction: Annotated[float, Field(ge=0, lt=1)]
    contrast_fraction: Annotated[float, Field(ge=0, lt=1)]
    stain_fraction: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed


class Embed(Section):
    """The one pass of the backbone."""

    weights: str | dict[str, str]
    image_size_px: Annotated[int, Field(ge=32)]
    views: Annotated[int, Field(ge=0)]
    views_of: Literal["minority", "all"]
    batch_size: Count
    dtype: Literal["float32", "float16"]
    mixed_precision: Literal["float16", "bfloat16"] | None
    jpeg_draft: bool

    def weights_for(self, backbone: str) -> str:
        """The word or path for one backbone; a mapping must name it."""
        if isinstance(self.weights, str):
            return self.weights
        if backbone not in self.weights:
            raise ConfigError(
                f"embed.weights is a mapping that does not name '{backbone}' (it names: "
                f"{', '.join(self.weights) or 'nothing'}). Add `{backbone}: imagenet`, `random` or a path."
            )
        return self.weights[backbone]


class Constraint(Section):
    """A bound that a trial should meet, at threshold 0.5 on raw probabilities."""

    metric: str
    at_least: float


class Tune(Section):
    """The search, the same effort for every scenario."""

    trials: Count
    inner_folds: Annotated[int, Field(ge=2)]
    objective: str
    sensitivity_floor: Fraction
    constraint: Constraint | None
    mode: Literal["probe", "finetune"]
    storage: Annotated[
        str | None, Field(exclude=True)
    ]  # where a search is kept changes no number, so no digest either
    l2_low: Positive
    l2_high: Positive
    l2_first: Annotated[list[Positive], Field(min_length=1)]
    batch_trials: Count
    gain_resamples: Annotated[int, Field(ge=20)]

    @field_validator("storage")
    @classmethod
    def _without_password(cls, storage: str | None) -> str | None:
        if storage and re.search(r"//[^/]*:.+@|[?&]password=", storage):
            raise ConfigError(
                "tune.storage holds a password, and settings are kept with the results. Put the whole address into "
                "the environment variable EQUIPOISE_OPTUNA_STORAGE instead."
            )
        return storage

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
    """The last mile: the same plan and objective end to end, from the solved head."""

    unfreeze: Literal["last_block", "all"]
    steps: Count
    evaluate_every_steps: Count
    batch_size: Count
    learning_rate: Positive
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    freeze_batch_norm: bool
    mixed_precision: bool
    stop_fraction: Fraction


class Calibrate(Section):
    """The calibrator every scenario gets."""

    min_patients: Annotated[int, Field(ge=2)]


class Threshold(Section):
    """The rule by which val locks the operating point."""

    rule: Literal["sensitivity_floor", "youden", "cost"]
    cost_ratio: Positive


class Compare(Section):
    """The paired comparison against the baseline; `alpha` also sets every interval's level, 1 - alpha."""

    primary: str
    alpha: Fraction
    resamples: Annotated[int, Field(ge=100)]
    permutations: Annotated[int, Field(ge=20)]
    mistakes: Annotated[
        int | None, Field(ge=0, exclude=True)
    ]  # showing them changes no number, so no digest either
    seed: Seed


class Tracking(Section):
    """Which trials are mirrored into MLflow as child runs."""

    trials: Literal["all", "best", "none"]


class Promote(Section):
    """Bounds of the gates between challenger and champion."""

    non_inferiority_margin: Annotated[float, Field(ge=0, lt=1)]
    sensitivity_low_at_least: Annotated[float, Field(ge=0, le=1)]
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
        """Plain data of some sections, as kept beside results and mirrored into MLflow."""
        return {
            name: getattr(self, name).model_dump() if getattr(self, name) else None
            for name in names
        }


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
        """Where the paths stay when ids are hashed: never tracked, never mirrored."""
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

    @property
    def reports_path(self) -> Path:
        """Folder of the comparison and its page."""
        return self.root / f"reports/{self.name}"

    @property
    def cache_path(self) -> Path:
        """Folder of what can be made again: shards, searches, decoded images. DVC does not look into it."""
        return self.root / "data/cache"


def find_root(start: Path | None = None) -> Path:
    """The folder that holds params.yaml: this one or the nearest above it."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / PARAMS).is_file():
            return folder
    raise ConfigError(
        f"No {PARAMS} in {start} or above it. Run Equipoise inside a checkout, or name one with --root."
    )


def read_params(root: Path = Path()) -> dict[str, Any]:
    """Plain contents of params.yaml."""
    path = Path(root) / PARAMS
    try:
        params = _yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {path}. Run Equipoise inside a checkout.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    if not isinstance(params, dict):
        raise ConfigError(
            f"{path} holds {type(params).__name__}, a mapping with run, defaults and studies is expected."
        )
    return params


def _yaml(text: str, where: str) -> Any:
    """Read YAML; anchors that repeat each other without end are refused before anything walks through them."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(
            f"{where} is not valid YAML: {str(error).splitlines()[0]}{place}."
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:  # a date that is none, deep brackets
        raise ConfigError(f"{where} is not valid YAML: {str(error)[:100]}.") from error
    waiting, seen = [value], 0
    while waiting:
        item = waiting.pop()
        waiting += (
            item.values()
            if isinstance(item, dict)
            else item
            if isinstance(item, list | tuple | set)
            else ()
        )
        seen += 1
        if seen > _VALUES_MAX:
            raise ConfigError(
                f"{where} holds more than {_VALUES_MAX:,} values once its anchors are written out."
            )
    return value


def load_study(
    name: str,
    params: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    root: Path = Path(),
) -> Study:
    """Settings of one study, checked.

    Args:
        name: A key of `studies` in params.yaml.
        params: Contents of params.yaml; read from `root` when left out.
        overrides: Dotted keys and values laid over the study, for example `{"tune.trials": 5}`.
        root: Folder that holds params.yaml.

    Raises:
        ConfigError: For an unknown study, section or key (naming the nearest one) or a value out of range.
    """
    params = read_params(root) if params is None else params
    _known_keys(params, {"run", "scenarios", "engine", "defaults", "studies"}, "")
    studies = _mapping(params, "studies")
    if name not in studies:
        raise unknown_name("study", name, studies)
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(
            f"The study name {_short(name)} names files: letters, digits, '_', '-' and '.' are expected."
        )
    merged = copy.deepcopy(_mapping(params, "defaults"))
    _known_keys(merged, set(Settings.model_fields), "defaults.")
    own = studies[name] or {}
    _known_keys(own, set(Settings.model_fields), f"studies.{name}.")
    for section, values in (*merged.items(), *own.items()):
        if not isinstance(values, dict | None):
            raise ConfigError(
                f"Section '{section}' of study '{name}' is {_short(values)}, a mapping is expected."
            )
    for section, values in own.items():
        merged[section] = {**(merged.get(section) or {}), **(values or {})}
    merged["phantom"] = merged.get("phantom") or None
    for key, value in (overrides or {}).items():
        section, _, field = key.partition(".")
        _known_keys({section: None}, set(Settings.model_fields), "")
        if not field:
            raise ConfigError(
                f"'{key:.100}' is a section; name a key in it, for example {section}.KEY=VALUE."
            )
        merged[section] = {**(merged.get(section) or {}), field: value}
    for section in Settings.model_fields:
        model = _section_model(section)
        if merged.get(section) is None:
            if section != "phantom":
                raise ConfigError(f"params.yaml lacks defaults.{section}.")
            continue
        _known_keys(merged[section], set(model.model_fields), f"studies.{name}.{section}.")
    run = _mapping(params, "run")
    _known_keys(run, {"studies", "backbones", "scenarios"}, "run.")
    _known_keys(engine := _mapping(params, "engine"), set(Engine.model_fields), "engine.")
    try:
        return Study(
            name=name,
            settings=Settings.model_validate(merged),
            scenario_settings={
                key: value or {} for key, value in _mapping(params, "scenarios").items()
            },
            backbones=_names(run, "backbones"),
            scenarios=_names(run, "scenarios"),
            engine=engine,  # type: ignore[arg-type]
            root=root,
        )
    except ValidationError as error:
        raise ConfigError(_validation_text(name, error)) from error


def run_studies(params: dict[str, Any] | None = None) -> list[str]:
    """Names of the studies that the pipeline runs."""
    params = read_params() if params is None else params
    return list(_names(_mapping(params, "run"), "studies"))


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
    return key.strip(), _yaml(value, f"'{text:.100}'")


def _section_model(section: str) -> type[Section]:
    return {"phantom": Phantom}.get(section) or Settings.model_fields[section].annotation  # type: ignore[return-value]


def _mapping(params: dict[str, Any], key: str) -> dict[str, Any]:
    value = params.get(key)
    if not isinstance(value, dict):
        raise ConfigError(f"params.yaml needs a mapping under '{key}', it holds {_short(value)}.")
    return value


def _names(run: dict[str, Any], key: str) -> tuple[str, ...]:
    names = run.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"run.{key} is {_short(names)}, a list of names is expected, for example [demo]."
        )
    return tuple(dict.fromkeys(names))


def _known_keys(values: Any, known: set[str], prefix: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(
            f"params.yaml needs a mapping under '{prefix.rstrip('.')}', it holds {_short(values)}."
        )
    for key in values:
        if key not in known:
            raise unknown_name(
                "key", f"{prefix}{key}", {prefix + name for name in known}, " in params.yaml"
            )


def _validation_text(study: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors()[:10]:
        where = ".".join(str(part) for part in item["loc"] if part != "settings")
        lines.append(f"{where} is {_short(item['input'])}: {item['msg']}")
    return (
        f"Settings of study '{study}' cannot be used. "
        + "; ".join(lines)
        + ". Correct params.yaml."
    )
