"""Verbs of the whole project: doctor, main."""

from __future__ import annotations

import json
import os
from pathlib import Path

from equipoise.cli import registry
from equipoise.cli.common import (
    QUIET,
    ArgumentParser,
    Group,
    Options,
    Verb,
    as_json,
    dry_run,
    load_studies,
    say,
    say_costs,
    say_json,
)
from equipoise.cli.scenarios import say_comparison
from equipoise.core import config
from equipoise.core.errors import ConfigError, EquipoiseError
from equipoise.core.shown import Table


def _doctor_options(parser: ArgumentParser) -> None:
    as_json(parser)
    parser.add_argument(
        "--devices", action="store_true", help="load TensorFlow and name its devices"
    )


def _doctor(options: Options) -> int:
    from equipoise import doctor

    os.environ.pop("MLFLOW_RUN_ID", None)
    findings = doctor.examine(options.root, options.devices)
    if options.json:
        say_json(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        rows = [[finding.level, finding.what, finding.detail] for finding in findings]
        say(Table(rows, wrapped=[2], judged=0))
    return int(any(finding.level == "error" for finding in findings))


def _main(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.core.documents import Comparison

    if options.dry_run:
        _rehearse(options.root)
        return
    if "MLFLOW_RUN_ID" in os.environ:
        _mark_launcher(options.root)
    pipeline.reproduce(options.root, {QUIET: "1"} if options.quiet else {})
    registry.track(options)
    registry.register(options)
    for study in load_studies(options):
        say()
        _measure_leaks_of_demo(study)
        comparison = Comparison.read(study.reports_path / "comparison.json")
        say_comparison(study, comparison)
        say(f"report: {study.reports_path / 'report.html'}")
        say(
            f"next: open it in a browser; `equipoise ui` shows the runs; "
            f"`equipoise promote --study {study.name}` puts the challenger into service if its gates pass"
        )


def _rehearse(root: Path) -> None:
    """Say of every study what it lacks, or what would run; of all of them before anything is refused."""
    from equipoise import pipeline

    params = config.read_params(root)
    refused = []
    for name in config.run_studies(params):
        try:
            study = config.load_study(name, params, root=root)
            pipeline.check_names(study)
        except EquipoiseError as error:
            say(f"{name}: {error}")
            refused.append(name)
            continue
        for lack in pipeline.lacks(study):
            say(f"{name}: {lack}")
        say_costs([study])
    if refused:
        raise ConfigError(f"{', '.join(refused)}: no stage can run; correct what is said above.")


def _measure_leaks_of_demo(study: config.Study) -> None:
    """Measure what a leak would have been worth, to be said beside the comparison.

    It takes seconds on drawn images. On real ones it is asked for with `equipoise leakage`.
    """
    from equipoise.compare import leakage

    if study.dataset == "phantom":
        first_backbone = study.backbones[0]
        leakage.measure(study, first_backbone)


def _mark_launcher(root: Path) -> None:
    """The run of `mlflow run -e main` is no result; say so in it."""
    from equipoise.registry import tracking

    launched = tracking.claim_launched(root, ("main",))
    if launched is None:
        return
    if launched.obstacle:
        say(f"{launched}.")
    else:
        tracking.mark_launcher(tracking.client(root), launched.run_id, {})


GROUP = Group(
    "the whole project",
    (
        Verb(
            "doctor",
            "what this machine has for what params.yaml asks",
            _doctor,
            _doctor_options,
            example="equipoise doctor --devices",
        ),
        Verb(
            "main",
            "dvc repro, track, register: the whole pipeline",
            _main,
            dry_run,
            example="equipoise main --dry-run",
        ),
    ),
)
