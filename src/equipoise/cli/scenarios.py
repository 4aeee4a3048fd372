"""Verbs from features to a verdict: scenario, compare, judge, report, leakage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.cli import export
from equipoise.cli.common import (
    LOG,
    ArgumentParser,
    Group,
    Options,
    Verb,
    as_json,
    dry_run,
    load_study,
    note,
    one_backbone,
    one_study,
    say,
    say_costs,
    say_json,
)
from equipoise.core import config

if TYPE_CHECKING:
    from equipoise.core.documents import Comparison


def _scenario_options(parser: ArgumentParser) -> None:
    one_study(parser)
    one_backbone(parser)
    parser.add_argument("--scenario", required=True, help="a file of src/equipoise/strategies")
    parser.add_argument("--trials", type=int, help="short for --set tune.trials=N")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override; writes to results/adhoc",
    )
    dry_run(parser)


def _scenario(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.core import parallel
    from equipoise.embed import imported
    from equipoise.scenario import stage
    from equipoise.scenario.summary import summary_text
    from equipoise.strategies import base as strategies

    strategies.load_strategy(options.scenario)
    overrides = _overrides(options)
    study = config.load_study(options.study, overrides=overrides, root=options.root)
    imported.require_known(study.settings.embed, options.backbone)
    folder = study.result_path(options.backbone, options.scenario)
    if overrides:
        folder = pipeline.adhoc_folder(study, options.backbone, options.scenario, overrides)
    if options.dry_run:
        say_costs([study], options.backbone, [options.scenario])
        return
    pipeline.ensure(study, options.backbone, say)
    timer = parallel.Timer()
    summary = stage.run(study, options.backbone, options.scenario, folder)
    say(f"{summary_text(summary)} ({timer}); written to {folder}")
    if "MLFLOW_RUN_ID" in os.environ:
        _adopt(study, options, folder)


def _overrides(options: Options) -> dict[str, object]:
    overrides = dict(config.parse_override(text) for text in options.set)
    if options.trials is not None:
        overrides["tune.trials"] = options.trials
    return overrides


def _adopt(study: config.Study, options: Options, folder: Path) -> None:
    """Write the result into the run that `mlflow run` opened for it, or into one of its own."""
    from equipoise.registry import tracking

    launched = tracking.claim_launched(options.root, (options.scenario, "scenario"))
    if launched is None:
        return
    if launched.obstacle:
        say(f"{launched}, and the result gets a run of its own.")
    store = tracking.client(options.root)
    done = tracking.mirror(
        store,
        study,
        options.backbone,
        options.scenario,
        folder,
        launched.adopted,
        _overrides(options),
    )
    state = "written" if done.written else "already held this result"
    say(f"MLflow run {done.run_id}: {state}")


def _compare_options(parser: ArgumentParser) -> None:
    one_study(parser)
    as_json(parser)


def _compare(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.compare import stage
    from equipoise.compare.report import page

    study = load_study(options)
    pipeline.require_current(study)
    for aside in pipeline.set_aside_unlisted(study):
        LOG.warning(f"{aside}: moved here, because run in params.yaml does not name it")
    done = stage.run(study)
    path = page.write(study, done.comparison, done.results)
    if options.json:
        say_json(stage.short_form(done.comparison).text())
        return
    say_comparison(study, done.comparison)
    say(f"report: {path}")


def say_comparison(study: config.Study, comparison: Comparison) -> None:
    """Show a comparison, and what leaks would have been worth where that was measured."""
    from equipoise.compare import screen

    beside = _leaks(study)
    say(screen.page(comparison, beside))


def _judge_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", help="CSV or Parquet: a file a method, or with a column method"
    )
    parser.add_argument(
        "--baseline", help="compared with (default: the one called baseline, or the first)"
    )
    parser.add_argument("--positive", metavar="CLASS", help="the positive class of two")
    parser.add_argument("--margin", type=float, help="largest difference that would not matter")
    parser.add_argument("--alpha", type=float, help="all intervals together cover 1 - ALPHA")
    parser.add_argument("--resamples", type=int, help="how often patients are drawn again")
    parser.add_argument("--seed", type=int, help="of these draws")
    parser.add_argument(
        "--sensitivity-floor", type=float, help="sensitivity at which specificity is read"
    )
    parser.add_argument("--page", metavar="FILE.html", help="write the page there")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there; - for the screen")


def _judge(options: Options) -> None:
    from equipoise.compare import screen
    from equipoise.judge.verdicts import judge_files

    settings = config.judging_settings(options.root, _judging_overrides(options))
    paths = [Path(name) for name in options.files]
    judged = judge_files(paths, settings, options.baseline, options.positive)
    document = judged.document()
    if options.json == "-":
        say_json(document.text())
    else:
        say(screen.page(judged.comparison))
        if options.json:
            document.write(Path(options.json))
    if options.page:
        from equipoise.judge import page

        page.write(Path(options.page), judged)
        if options.json != "-":
            say(f"page: {options.page}")


def _judging_overrides(options: Options) -> dict[str, object]:
    """The options that were given, by the settings that they stand for."""
    given = {
        "compare.margin": options.margin,
        "compare.alpha": options.alpha,
        "compare.resamples": options.resamples,
        "compare.seed": options.seed,
        "tune.sensitivity_floor": options.sensitivity_floor,
    }
    return {key: value for key, value in given.items() if value is not None}


def _report_options(parser: ArgumentParser) -> None:
    one_study(parser)
    parser.add_argument(
        "--against", metavar="REV", help="a git revision: say which patients moved since"
    )


def _leaks(study: config.Study) -> list[str]:
    """What leaks would have been worth, in a sentence for each backbone where that was measured."""
    from equipoise.compare import leakage

    return [leakage.sentence(report) for report in leakage.kept(study)]


def _report(options: Options) -> None:
    from equipoise.compare import results
    from equipoise.compare.report import page
    from equipoise.core.documents import Comparison
    from equipoise.split import revisions

    study = load_study(options)
    comparison = Comparison.read(study.reports_path / "evidence.json")
    moved = None
    if options.against:
        moved = revisions.moved_patients(study, options.against)
        say(revisions.moved_text(moved))
    path = page.write(study, comparison, results.read_results(study), moved, _leaks(study))
    say(f"report: {path}")


def _leakage_options(parser: ArgumentParser) -> None:
    one_study(parser)
    one_backbone(parser)
    as_json(parser)


def _leakage(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.compare import leakage

    study = load_study(options)
    pipeline.ensure(study, options.backbone, note if options.json else say)
    report = leakage.measure(study, options.backbone)
    if options.json:
        say_json(report.text())
        return
    say(leakage.page(report))
    say(f"written to {leakage.folder(study, options.backbone)}")


GROUP = Group(
    "features to a verdict",
    (
        Verb(
            "scenario",
            "tune, plan, fit, calibrate and predict one way of handling the imbalance",
            _scenario,
            _scenario_options,
            example="equipoise scenario --study demo --backbone vgg16 --scenario oversample --trials 5",
        ),
        Verb(
            "compare",
            "paired differences to the baseline, the verdict and the page",
            _compare,
            _compare_options,
            example="equipoise compare --study demo",
        ),
        Verb(
            "judge",
            "files of predictions, anybody's -> differences to a baseline, verdicts and a page",
            _judge,
            _judge_options,
            example="equipoise judge baseline.csv focal.csv --margin 0.01 --page verdict.html",
            needs_project=False,
        ),
        Verb(
            "report",
            "write the page of a comparison again, and say which patients moved since a revision",
            _report,
            _report_options,
            example="equipoise report --study demo --against HEAD~1",
        ),
        Verb(
            "leakage",
            "what leaks would be worth: patients split, and oversampling before the split",
            _leakage,
            _leakage_options,
            example="equipoise leakage --study demo --backbone vgg16",
        ),
        export.VERB,
    ),
)
