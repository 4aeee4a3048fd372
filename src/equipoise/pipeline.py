"""The order of the stages: building what a scenario lacks, the whole pipeline, and results outside DVC."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.core.config import SCENARIO_SECTIONS, Study
from equipoise.core.errors import ConfigError, EquipoiseError
from equipoise.core.records import Manifest, Splits, digest_of, read_json
from equipoise.embed import stage as features
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.split import stage as splits


def draw_phantoms(study: Study) -> int:
    """Draw the raw images of a study whose dataset is the phantom."""
    if study.dataset != "phantom":
        raise ConfigError(f"The images of study '{study.name}' are real ({study.dataset}); there is nothing to draw.")
    if study.settings.phantom is None:
        raise ConfigError(f"The phantom section of study '{study.name}' is empty; there is nothing to draw.")
    return phantom.draw(study.raw, study.settings.phantom.model_dump())


def ensure(study: Study, backbone: str, say: Any) -> None:
    """Build the stages before a scenario that are missing or were made with other settings or parents.

    Args:
        study: Name and settings.
        backbone: Whose features are needed.
        say: Called with a line of text for each stage that is built.
    """
    if study.dataset == "phantom" and not study.raw.is_dir():
        say(f"drawing {study.raw}")
        draw_phantoms(study)
    manifest = _read(Manifest, study.manifest_path)
    if manifest is None or manifest.meta.get("settings") != study.settings.sections("ingest"):
        say(f"ingesting {study.raw}")
        manifest, _ = ingest.run(study)
    split = _read(Splits, study.splits_path)
    wanted: dict[str, Any] = study.settings.sections("split")
    if split is None or split.meta["settings"] != wanted or split.meta["manifest"] != manifest.digest:
        say(f"splitting {study.name}")
        splits.run(study)
    meta_path = study.features_path(backbone) / "meta.json"
    meta = read_json(meta_path) if meta_path.is_file() else {}
    wanted = study.settings.sections("embed", "augment")
    if meta.get("settings") != wanted or meta.get("manifest") != manifest.digest:
        say(f"embedding {study.name} with {backbone}")
        features.run(study, backbone)


def adhoc_folder(study: Study, backbone: str, scenario: str, overrides: Mapping[str, Any]) -> Path:
    """Where a run with overrides is written: never over DVC's outputs, never read by `compare`."""
    for key in overrides:
        if key.split(".")[0] not in SCENARIO_SECTIONS:
            raise ConfigError(
                f"'{key}' cannot be overridden for one scenario: it would change the data that all scenarios share. "
                f"Overrides reach {', '.join(SCENARIO_SECTIONS)}; change params.yaml for the rest."
            )
    parts = [study.name, backbone, scenario, study.settings.model_dump(), study.scenario_settings.get(scenario, {})]
    return Path("results/adhoc") / digest_of(parts)[:16]


def reproduce() -> None:
    """Run `dvc repro` with this interpreter first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run([sys.executable, "-m", "dvc", "repro"], env={**os.environ, "PATH": path}).returncode
    if code:
        raise EquipoiseError(f"`dvc repro` ended with code {code}; its last lines say why.")


def _read(record: type[Manifest] | type[Splits], path: Path) -> Any:
    return record.read(path) if path.is_file() else None
