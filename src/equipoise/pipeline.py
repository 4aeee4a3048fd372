"""The order of the stages: what is fresh, what is missing, and the whole of it.

DVC decides by digests of files and code whether a stage runs. Here only settings and parents are looked
at: for the verbs that build what they lack, and for `--dry-run` and `doctor`, which say what would run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from equipoise.core import environment, extras
from equipoise.core.config import (
    SCENARIO_SECTIONS,
    Study,
    load_study,
    read_params,
    run_studies,
)
from equipoise.core.documents import FeatureSummary, ScenarioSummary
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest, Splits
from equipoise.embed import backbones, encoders, imported
from equipoise.embed import stage as embed_stage
from equipoise.ingest import fingerprint, originals
from equipoise.ingest import stage as ingest_stage
from equipoise.ingest.datasets import base as datasets
from equipoise.ingest.datasets import phantom
from equipoise.project import links
from equipoise.split import stage as split_stage
from equipoise.strategies import base as strategies

#: A kind of document.
Kind = TypeVar("Kind")


# --- what is fresh --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freshness:
    """Which stages of a study have outputs that were made with today's settings from today's parents.

    A stage whose parent is not fresh is not fresh either.

    Attributes:
        study: Name and settings.
        manifest: None where there is none.
        splits: None where there are none.
        change: What has changed since the manifest was made, in words; empty where nothing has.
    """

    study: Study
    manifest: Manifest | None
    splits: Splits | None
    change: str

    @classmethod
    def of(cls, study: Study) -> Freshness:
        """Read what is there."""
        manifest = Manifest.read(study.manifest_path) if study.manifest_path.is_file() else None
        splits = Splits.read(study.splits_path) if study.splits_path.is_file() else None
        return cls(study, manifest, splits, _change(study, manifest))

    @property
    def ingest(self) -> bool:
        """Whether the manifest is of these settings, of this raw folder and of this code."""
        return self.manifest is not None and not self.change

    @property
    def split(self) -> bool:
        """Whether the split is of these settings and of this manifest."""
        if self.splits is None or self.manifest is None or not self.ingest:
            return False
        if self.splits.meta["manifest"] != self.manifest.digest:
            return False
        return self.splits.meta["settings"] == self.study.settings.sections("split")

    def embed(self, backbone: str) -> bool:
        """Whether the features are of these settings and of this manifest."""
        summary = self.features(backbone)
        if summary is None or self.manifest is None or not self.ingest:
            return False
        if summary.manifest != self.manifest.digest:
            return False
        if not self._reads_the_same_vectors(backbone, summary):
            return False
        if not self._has_the_same_network(backbone, summary):
            return False
        return summary.settings == self.study.settings.sections("embed", "augment")

    def _reads_the_same_vectors(self, backbone: str, summary: FeatureSummary) -> bool:
        """Whether imported vectors are still those that were read.

        The pass of a backbone reads none, and features may have come to this machine without them.
        """
        if not imported.is_imported(self.study.settings.embed, backbone):
            return True
        if not imported.place(self.study, backbone).exists():
            return True
        return summary.weights_digest == imported.content_digest(self.study, backbone)

    def _has_the_same_network(self, backbone: str, summary: FeatureSummary) -> bool:
        """Whether a network given as a file is still the one that made the features."""
        settings = self.study.settings.embed
        if imported.is_imported(settings, backbone):
            return True
        weights = settings.weights_for(backbone)
        root = self.study.root
        if not encoders.is_encoder(weights) or not backbones.weights_there(backbone, weights, root):
            return True
        return encoders.pipeline_part(weights, root) in summary.pipeline

    def scenario(self, backbone: str, scenario: str) -> bool:
        """Whether a result is of these settings, this split and these features."""
        features = self.features(backbone)
        folder = self.study.result_path(backbone, scenario)
        summary = _read_or_none(ScenarioSummary.read, folder / "metrics.json")
        if features is None or summary is None or self.splits is None:
            return False
        if not (self.split and self.embed(backbone)):
            return False
        if summary.digests.get("features") != features.digest:
            return False
        if summary.digests.get("splits") != self.splits.digest:
            return False
        return summary.settings == _as_written(scenario_settings(self.study, scenario))

    def features(self, backbone: str) -> FeatureSummary | None:
        """What the features say of themselves, fresh or not; None where there are none that can be read."""
        path = self.study.features_path(backbone) / "meta.json"
        return _read_or_none(FeatureSummary.read, path)


def _change(study: Study, manifest: Manifest | None) -> str:
    """What has changed since a manifest was made, in words; empty where nothing has."""
    if manifest is None:
        return "there is no manifest"
    if manifest.meta.get("settings") != study.settings.sections("ingest"):
        return "the settings of ingest have changed"
    return fingerprint.change(study, manifest)


def scenario_settings(study: Study, scenario: str) -> dict[str, Any]:
    """The settings that a result depends on, as `metrics.json` keeps them."""
    sections = study.settings.sections("split", "embed", "augment", *SCENARIO_SECTIONS)
    sections["scenario"] = study.scenario_settings.get(scenario, {})
    return sections


def _as_written(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a JSON file: tuples are lists there."""
    return json.loads(json.dumps(settings))


def _read_or_none(read: Callable[[Path], Kind], path: Path) -> Kind | None:
    """A document, or None where it is missing or damaged: then its stage is simply not fresh."""
    try:
        return read(path)
    except (DataError, OSError):
        return None


# --- building what a verb lacks -------------------------------------------------------------------


def draw_phantoms(study: Study) -> int:
    """Draw the raw images of a study whose dataset is the phantom; returns the number of files."""
    if study.dataset != "phantom":
        raise ConfigError(
            f"The images of study '{study.name}' are real ({study.dataset}); "
            "there is nothing to draw."
        )
    if study.settings.phantom is None:
        raise ConfigError(
            f"The phantom section of study '{study.name}' is empty; there is nothing to draw."
        )
    return phantom.draw(study.raw, study.settings.phantom)


def ensure(study: Study, backbone: str, say: Callable[[str], None]) -> None:
    """Build the stages before a scenario that are missing or not fresh.

    Args:
        study: Name and settings.
        backbone: Whose features are needed.
        say: Called with a line of text for each stage that is built.
    """
    if study.dataset == "phantom" and not study.raw.is_dir():
        say(f"drawing {study.raw}")
        draw_phantoms(study)
    before = Freshness.of(study)
    if before.ingest and before.manifest is not None:
        if not study.raw.is_dir():
            say(
                f"{study.raw} is not on this machine; going on from the manifest that came without it"
            )
        fingerprint.remember(study, before.manifest)
    else:
        say(f"ingesting {study.raw}: {before.change}")
        ingest_stage.run(study)
    if not Freshness.of(study).split:
        say(f"splitting {study.name}")
        split_stage.run(study)
    if not Freshness.of(study).embed(backbone):
        say(f"embedding {study.name} with {backbone}")
        embed_stage.run(study, backbone)


def require_current(study: Study) -> None:
    """Refuse to go on from a manifest that is not of the raw images as they are now.

    Where there is none the stage itself says what it lacks.

    Raises:
        DataError: With what has changed, and the command that makes it anew.
    """
    if study.manifest_path.is_file():
        fingerprint.require_current(study, Manifest.read(study.manifest_path))


def adhoc_folder(study: Study, backbone: str, scenario: str, overrides: Mapping[str, Any]) -> Path:
    """Where a run with overrides is written: never over DVC's outputs, never read by `compare`.

    Raises:
        ConfigError: For an override of something that all scenarios share.
    """
    for key in overrides:
        section, _, _ = key.partition(".")
        if section not in SCENARIO_SECTIONS:
            raise ConfigError(
                f"'{key}' cannot be overridden for one scenario: it would change the data that all "
                f"scenarios share. Overrides reach {', '.join(SCENARIO_SECTIONS)}; "
                "change params.yaml for the rest."
            )
    own_settings = study.scenario_settings.get(scenario, {})
    digest = digest_of([study.name, backbone, scenario, study.settings.model_dump(), own_settings])
    return study.root / "results/adhoc" / digest[:16]


def set_aside_unlisted(study: Study) -> list[Path]:
    """Move results that `run` does not name out of the folder that `compare` depends on; returns where they are now.

    DVC knows the results of a study as one folder. A result that was taken off the list, or was made by hand, would
    make that folder another one in this clone only: `compare` would run, and dvc.lock would change.
    """
    results = study.root / "results" / study.name
    listed = {study.result_path(*pair) for pair in product(study.backbones, study.scenarios)}
    moved = []
    for folder in sorted(results.glob("*/*")):
        if folder in listed:
            continue
        aside = study.root / "results/unlisted" / folder.relative_to(results.parent)
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
        moved.append(aside)
    for folder in {results / aside.parent.name for aside in moved}:
        if not any(folder.iterdir()):
            folder.rmdir()
    return moved


def check_names(study: Study) -> None:
    """Raise the error of the first dataset, scenario or backbone that does not exist; it names the nearest."""
    datasets.load_dataset(study.dataset)
    for scenario in study.scenarios:
        strategies.load_strategy(scenario)
        if scenario not in study.scenario_settings:
            raise ConfigError(
                f"Scenario '{scenario}' of run.scenarios has no line under `scenarios` in params.yaml. "
                f"Write `{scenario}: {{}}` there: DVC wants it, and it takes the defaults."
            )
    for backbone in study.backbones:
        imported.require_known(study.settings.embed, backbone)
        imported.refuse_finetuning(study.settings, backbone)


def lacks(study: Study) -> list[str]:
    """What a study with good settings still lacks before it can run here, each with the next step."""
    lacking = []
    if not study.raw.is_dir() and study.dataset != "phantom":
        lacking.append(originals.advice_without(study))
    lacking += filter(
        None, [originals.advice_to_link(study), links.advice_to_link_program(study.root)]
    )
    for backbone in study.backbones:
        if not imported.is_imported(study.settings.embed, backbone) and extras.lacking("keras"):
            lacking.append(f"{backbone} needs TensorFlow: {extras.install('keras')}")
    return lacking


def require_checkout(root: Path) -> None:
    """Refuse a folder that is no git checkout, as one that came in a zip.

    Raises:
        ConfigError: With the commands that make it one, or when git or a home folder is missing.
    """
    environment.require_git()
    environment.require_home()
    if environment.git("rev-parse", "--git-dir", folder=root) is None:
        raise ConfigError(
            f"{root} is no git checkout (did it come as a zip?), and DVC works inside one: run `git init`, "
            f"`git add -A` and `git commit -m start` there, then the same command again."
        )


def reproduce(root: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run `dvc repro` in a project, with this interpreter first on the path.

    Args:
        root: Folder of the project.
        variables: What the stages find in their environment beside that of this process.

    Raises:
        ConfigError: Before DVC speaks: for a folder without git, a name that does not exist, a section that is missing,
            and originals of a study that lie where DVC does not look.
        EquipoiseError: When it fails.
    """
    require_checkout(root)
    params = read_params(root)
    for name in run_studies(params):
        study = load_study(name, params, root=root)
        check_names(study)
        advice = originals.advice_to_link(study)
        if advice:
            raise ConfigError(f"Study '{name}' has its originals elsewhere (ingest.raw). {advice}.")
        _require_watched_files(study)
        set_aside_unlisted(study)
    import dvc  # noqa: F401 - where it is missing it is told here, by the one sentence for extras

    links.link_program(root)
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    _drop_cut_lock(root / ".dvc/tmp/rwlock")
    command = [sys.executable, "-m", "dvc", "repro"]
    # DVC asks for the name of the user, and ends where there is none.
    of_stages = {"USER": environment.user(), **os.environ, "PATH": path, **(variables or {})}
    code = subprocess.run(command, cwd=root, env=of_stages).returncode
    if code:
        raise EquipoiseError(f"`dvc repro` ended with code {code}; its last lines say why.")


def _drop_cut_lock(path: Path, seconds: float = 0.5) -> None:
    """Remove the list of DVC's locks where a kill cut it.

    DVC writes it in place, refuses what it cannot read afterwards, and says that it has to be removed. A list that is
    being written is whole `seconds` later.
    """
    if _is_json(path):
        return
    time.sleep(seconds)
    if not _is_json(path):
        path.unlink(missing_ok=True)


def _is_json(path: Path) -> bool:
    """Whether a file holds JSON; also where there is none."""
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _require_watched_files(study: Study) -> None:
    """Refuse imported vectors and whole networks that lie where DVC does not look."""
    for backbone in study.backbones:
        advice = imported.advice_to_move(study, backbone)
        if advice:
            raise ConfigError(f"Study '{study.name}', {backbone}: {advice}.")
