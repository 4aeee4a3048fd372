"""The command line: parse, call one room, show what came of it, set the exit code.

Paths that a user gives (`predict x.png`, `--out`, `--to`) mean what they say from the folder one stands in.
Paths of the project are below the folder of params.yaml, which is handed to every room.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise import __version__
from equipoise.core import config
from equipoise.core.environment import masked
from equipoise.core.errors import AuditFinding, ConfigError, DataError, EquipoiseError

if TYPE_CHECKING:
    from equipoise.core.documents import Comparison

Options = argparse.Namespace
#: What a verb does; it may return an exit code.
Command = Callable[[Options], int | None]

VERBS = {
    "fetch": "download, check and unpack a published dataset, and put it under DVC",
    "phantom": "draw the raw images of the demo",
    "ingest": "raw folder -> manifest: verify, hash, quarantine, read the patient",
    "split": "manifest -> train, val and test in whole patients",
    "embed": "one backbone pass over every distinct image and view",
    "scenario": "tune, plan, fit, calibrate and predict one way of handling the imbalance",
    "compare": "paired differences to the baseline, the verdict and the page",
    "judge": "files of predictions, anybody's -> differences to a baseline, verdicts and a page",
    "report": "write the page of a comparison again, and say which patients moved since a revision",
    "leakage": "what leaks would be worth: patients split, and oversampling before the split",
    "export": "write train, val and test as folders or CSV, for other tools",
    "track": "mirror into MLflow every result that the store lacks",
    "ui": "serve MLflow's page of the store on this machine, and print the link to each study",
    "register": "make each backbone's winner a version in the model registry",
    "promote": "move the alias champion to the challenger, or to a version",
    "rollback": "return the alias champion to the version before",
    "audit": "the log of promotions and rollbacks; `audit verify` finds gaps, edits, moved aliases",
    "predict": "images, folders, patterns or a CSV -> CSV or Parquet, with a registered model",
    "explain": "an image -> the decision of a registered model, and a map of what speaks for it",
    "doctor": "what this machine has for what params.yaml asks",
    "main": "dvc repro, track, register: the whole pipeline",
}
#: They read params.yaml where there is one.
_WITHOUT_PROJECT = frozenset({"judge"})
_INTERRUPTED = "Interrupted. Finished work is kept; the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 is well; 1 data; 2 settings; 3 promotion refused; 4 audit finding; 5 server; 130 interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    try:
        options.root = _root(options)
        return options.command(options) or 0
    except EquipoiseError as error:
        return _tell(error)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        known = _known_error(error)
        if known is None:
            raise
        return _tell(known)


def _root(options: Options) -> Path | None:
    """The folder with params.yaml; None where there is none and the verb does without."""
    if options.root:
        return config.find_root(Path(options.root))
    if options.verb in _WITHOUT_PROJECT:
        return config.nearest_root(Path())
    return config.find_root()


def _known_error(error: Exception) -> EquipoiseError | None:
    """What an error of a server or of the disk says in a sentence; None for a defect of ours."""
    tracking = sys.modules.get("equipoise.service.tracking")
    if tracking is not None:  # where it was never imported no server was asked
        told = tracking.any_error(error)
        if told is not None:
            return told
    if isinstance(error, OSError):
        return DataError(
            f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}. "
            "Free space or permissions, then run the same command again: finished work is kept."
        )
    return None


def _tell(error: EquipoiseError) -> int:
    print(f"{type(error).__name__}: {masked(error)}", file=sys.stderr)
    return error.exit_code


def _say(text: str = "") -> None:
    print(text, flush=True)


# --- options --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="equipoise", description="Compare remedies for class imbalance fairly."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--root", help="folder with params.yaml (default: this one or the nearest above)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        command, add_options = COMMANDS[name]
        add_options(verb)
        verb.set_defaults(command=command)
    return parser


def _one_study(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--study", required=True, help="a study of params.yaml")


def _phantom_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--study", default="demo", help="a study of params.yaml (default: demo)")


def _some_studies(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--study", help="a study of params.yaml (default: all of run.studies)")


def _backbone(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--backbone",
        required=True,
        help="densenet201, vgg16, mobilenetv2 or a name of embed.features",
    )


def _dry_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--dry-run", action="store_true", help="say what would run and what it would cost"
    )


def _fetch_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("dataset", help="chest_xray or breakhis")
    verb.add_argument("--to", help="folder to make (default: data/raw/DATASET)")
    verb.add_argument(
        "--from", dest="address", help="another address of the same archive, or a file"
    )


def _embed_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    _backbone(verb)
    _dry_run(verb)


def _scenario_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    _backbone(verb)
    verb.add_argument("--scenario", required=True, help="a file of src/equipoise/strategies")
    verb.add_argument("--trials", type=int, help="short for --set tune.trials=N")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override; writes to results/adhoc",
    )
    _dry_run(verb)


def _track_options(verb: argparse.ArgumentParser) -> None:
    _some_studies(verb)
    verb.add_argument(
        "--rehome",
        action="store_true",
        help="first make mlflow.db of a copied or moved checkout keep its files here",
    )


def _ui_options(verb: argparse.ArgumentParser) -> None:
    _some_studies(verb)
    verb.add_argument("--port", type=int, help="to listen on (default: 5001, or any free one)")


def _judge_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "files", nargs="+", help="CSV or Parquet: a file a method, or with a column method"
    )
    verb.add_argument(
        "--baseline", help="compared with (default: the one called baseline, or the first)"
    )
    verb.add_argument("--positive", metavar="CLASS", help="the positive class of two")
    verb.add_argument("--margin", type=float, help="a difference that nobody would care about")
    verb.add_argument("--alpha", type=float, help="all intervals together cover 1 - ALPHA")
    verb.add_argument("--resamples", type=int, help="of the patients")
    verb.add_argument("--seed", type=int, help="of the resamples")
    verb.add_argument("--sensitivity-floor", type=float, help="where specificity is read")
    verb.add_argument("--page", metavar="FILE.html", help="write the page there")
    verb.add_argument("--json", metavar="FILE", help="write the numbers there; - for the screen")


def _report_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    verb.add_argument(
        "--against", metavar="REV", help="a git revision: say which patients moved since"
    )


def _leakage_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    _backbone(verb)


def _export_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    verb.add_argument("--layout", required=True, choices=("folders", "csv"))
    verb.add_argument("--scenario", help="train rows as this scenario's plan draws them")
    verb.add_argument("--backbone", help="of that scenario")
    verb.add_argument("--to", help="folder to make (default: exports/STUDY/...)")
    verb.add_argument("--copy", action="store_true", help="copy files instead of linking them")


def _promote_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    verb.add_argument("--version", help="promote this version instead of the challenger")
    verb.add_argument(
        "--force", action="store_true", help="although gates fail; goes with --reason"
    )
    verb.add_argument("--reason", help="why; kept in the log")


def _rollback_options(verb: argparse.ArgumentParser) -> None:
    _one_study(verb)
    verb.add_argument("--reason", required=True, help="why; kept in the log")


def _audit_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "what", nargs="?", choices=("show", "verify"), default="show", help="default: show"
    )
    _some_studies(verb)


def _predict_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", required=True, help="for example models:/equipoise-demo@champion")
    verb.add_argument(
        "images", nargs="*", help="files, folders, patterns, or a CSV with the column path"
    )
    verb.add_argument(
        "--features", metavar="FILE", help="vectors instead of images, as embed.features names them"
    )
    verb.add_argument(
        "--out", default="predictions.csv", help=".csv or .parquet (default: predictions.csv)"
    )


def _explain_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("image", help="an image file")
    verb.add_argument("--model", required=True, help="as for predict")
    verb.add_argument(
        "-o", "--out", default="explained.png", help="PNG to write (default: explained.png)"
    )
    verb.add_argument(
        "--class", dest="class_name", help="map of this class (default: the one decided for)"
    )


def _doctor_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.add_argument("--devices", action="store_true", help="load TensorFlow and name its devices")


# --- what the verbs need --------------------------------------------------------------------------


def _study(options: Options) -> config.Study:
    """The study that --study names."""
    return config.load_study(options.study, root=options.root)


def _studies(options: Options) -> list[config.Study]:
    """The study that --study names; without it those of run.studies."""
    params = config.read_params(options.root)
    named = getattr(options, "study", None)
    names = [named] if named else config.run_studies(params)
    return [config.load_study(name, params, root=options.root) for name in names]


def _say_costs(
    studies: list[config.Study], backbone: str | None = None, scenarios: list[str] | None = None
) -> None:
    """What would run and what it would cost; with a backbone the passes are counted exactly."""
    from equipoise import pipeline

    backbones = None if backbone is None else [backbone]
    for study in studies:
        steps = pipeline.steps(study, backbones, scenarios, exact=backbone is not None)
        for step in steps:
            _say(f"{study.name}: {step}")
        _say(f"{study.name}: {pipeline.total(steps)}")


def _say_comparison(study: config.Study, comparison: Comparison) -> None:
    from equipoise.compare import leakage, screen

    beside = [leakage.sentence(report) for report in leakage.kept(study)]
    _say(screen.text(comparison, beside))


# --- raw images to features -----------------------------------------------------------------------


def _fetch(options: Options) -> None:
    from equipoise.ingest import fetch

    folder = Path(options.to) if options.to else None
    fetch.run(options.dataset, folder, options.address, _say, root=options.root)


def _phantom(options: Options) -> None:
    from equipoise import pipeline

    study = _study(options)
    files = pipeline.draw_phantoms(study)
    _say(f"{files} files drawn into {study.raw}")


def _ingest(options: Options) -> None:
    from equipoise.ingest import stage
    from equipoise.ingest.summary import summary_text

    done = stage.run(_study(options))
    _say(summary_text(done.summary, done.quarantined, done.remarks))


def _split(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.split import stage

    study = _study(options)
    pipeline.require_current(study)
    done = stage.run(study)
    _say(stage.summary_text(done.summary))


def _embed(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.core import parallel
    from equipoise.embed import imported, stage

    study = _study(options)
    settings = study.settings.embed
    imported.require_known(settings, options.backbone)
    if options.dry_run:
        _say_costs([study], options.backbone, [])
        return
    pipeline.require_current(study)
    timer = parallel.Timer()
    if imported.is_imported(settings, options.backbone):
        _say(f"reading the vectors of {options.backbone}")
    else:
        weights = settings.weights_for(options.backbone)
        _say(f"building {options.backbone}, weights: {weights}")
    done = stage.run(study, options.backbone)
    _say(f"{stage.result_text(done)} ({timer})")


# --- features to a verdict ------------------------------------------------------------------------


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
        _say_costs([study], options.backbone, [options.scenario])
        return
    pipeline.ensure(study, options.backbone, _say)
    timer = parallel.Timer()
    summary = stage.run(study, options.backbone, options.scenario, folder)
    _say(f"{summary_text(summary)} ({timer}); written to {folder}")
    if "MLFLOW_RUN_ID" in os.environ:
        _adopt(study, options, folder)


def _overrides(options: Options) -> dict[str, object]:
    overrides = dict(config.parse_override(text) for text in options.set)
    if options.trials is not None:
        overrides["tune.trials"] = options.trials
    return overrides


def _adopt(study: config.Study, options: Options, folder: Path) -> None:
    """Write the result into the run that `mlflow run` opened for it, or into one of its own."""
    from equipoise.service import tracking

    launched = tracking.claim_launched(options.root, (options.scenario, "scenario"))
    if launched is None:
        return
    if launched.obstacle:
        _say(f"{launched}, and the result gets a run of its own.")
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
    _say(f"MLflow run {done.run_id}: {state}")


def _compare(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.compare import stage
    from equipoise.compare.report import page

    study = _study(options)
    pipeline.require_current(study)
    for aside in pipeline.set_aside_unlisted(study):
        _say(f"{aside}: moved here, because run in params.yaml does not name it")
    done = stage.run(study)
    path = page.write(study, done.comparison, done.results)
    _say_comparison(study, done.comparison)
    _say(f"report: {path}")


def _judge(options: Options) -> None:
    from equipoise.compare import judge, screen

    settings = config.judging_settings(options.root, _judging_overrides(options))
    paths = [Path(name) for name in options.files]
    judged = judge.judge_files(paths, settings, options.baseline, options.positive)
    document = judged.document()
    if options.json == "-":
        _say(document.text())
    else:
        _say(screen.text(judged.comparison))
        if options.json:
            document.write(Path(options.json))
    if options.page:
        from equipoise.compare.report import judged as page

        page.write(Path(options.page), judged)
        if options.json != "-":
            _say(f"page: {options.page}")


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


def _report(options: Options) -> None:
    from equipoise.compare import results
    from equipoise.compare.report import page
    from equipoise.core.documents import Comparison
    from equipoise.split import revisions

    study = _study(options)
    comparison = Comparison.read(study.reports_path / "evidence.json")
    moved = None
    if options.against:
        moved = revisions.moved_patients(study, options.against)
        _say(revisions.moved_text(moved))
    path = page.write(study, comparison, results.read_results(study), moved)
    _say(f"report: {path}")


def _leakage(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.compare import leakage

    study = _study(options)
    pipeline.ensure(study, options.backbone, _say)
    rows = leakage.measure(study, options.backbone)
    _say(leakage.table_text(rows))
    _say(f"written to {leakage.folder(study, options.backbone)}")


def _export(options: Options) -> None:
    from equipoise.service import export

    folder = Path(options.to) if options.to else None
    done = export.export_study(
        study=_study(options),
        layout=options.layout,
        scenario=options.scenario,
        backbone=options.backbone,
        to=folder,
        copy=options.copy,
    )
    if not done.files:
        _say(f"{done.folder} holds this export already; nothing changed")
        return
    _say(f"{done.files} files written to {done.folder}")
    if options.layout == "folders" and not options.copy:
        _say(
            "  links to the originals where the disk allows it: use --copy before editing in place"
        )


# --- registry and service -------------------------------------------------------------------------


def _track(options: Options) -> None:
    from equipoise.service import tracking

    if getattr(options, "rehome", False):  # `main` tracks too, without the option
        changed = tracking.rehome(options.root)
        _say(f"{tracking.address(options.root)}: {changed} addresses of files changed")
    for study in _studies(options):
        done = tracking.track(study)
        address = tracking.address(options.root)
        _say(
            f"{study.name}: {len(done.written)} results written, "
            f"{len(done.present)} already in {address}"
        )
        _say(f"  {tracking.advice_to_look(study)}")


def _ui(options: Options) -> None:
    from equipoise.service import ui

    ui.show(_studies(options), options.root, options.port, _say)


def _register(options: Options) -> None:
    from equipoise.service import audit, register

    for study in _studies(options):
        name = audit.model_name(study.name)
        for version in register.register(study):
            state = "registered" if version.new else "was registered"
            renewed = "; its code is committed now, and it says so" if version.renewed else ""
            _say(
                f"{version.scenario} on {version.backbone} {state} as {name} "
                f"version {version.version}{renewed}"
            )


def _promote(options: Options) -> None:
    from equipoise.service import promotion

    study = _study(options)
    done = promotion.promote(study, options.version, options.force, options.reason, _say)
    _say(promotion.moved_text(done))


def _rollback(options: Options) -> None:
    from equipoise.service import promotion

    done = promotion.rollback(_study(options), options.reason, _say)
    _say(promotion.moved_text(done))


def _audit(options: Options) -> None:
    from equipoise.service import audit, tracking

    store = tracking.client(options.root)
    findings: list[str] = []
    for study in _studies(options):
        name = audit.model_name(study.name)
        if options.what == "show":
            _say(audit.history_text(name, audit.read(store, name)))
            continue
        sentences = audit.verify(store, name)
        told = "\n  ".join(sentences) or "the log is whole"
        _say(f"{name}: {told}")
        findings += sentences
    if findings:
        raise AuditFinding(
            f"{len(findings)} findings. docs/promotion.md says what to do about each."
        )


def _predict(options: Options) -> None:
    from equipoise.service import predict, predict_vectors

    out = Path(options.out)
    if bool(options.images) == bool(options.features):
        raise ConfigError("Name images, or vectors with --features: one of the two is expected.")
    if options.features:
        given = Path(options.features)
        done = predict_vectors.predict_features(options.model, given, out, options.root, _say)
    else:
        done = predict.predict_images(options.model, options.images, out, options.root, _say)
    flagged = f", {done.flagged} of them marked in `flags`" if done.flagged else ""
    _say(
        f"{done.predicted} images predicted{flagged}, {done.unreadable} unreadable; "
        f"written to {options.out}"
    )
    if not done.predicted:
        raise EquipoiseError("No image could be read; the column `error` of the file says why.")


def _explain(options: Options) -> None:
    from equipoise.service import explain

    image, out = Path(options.image), Path(options.out)
    _say(explain.explain_image(options.model, image, out, options.class_name, options.root))


# --- the machine and the whole pipeline -----------------------------------------------------------


def _doctor(options: Options) -> int:
    from equipoise import doctor

    os.environ.pop("MLFLOW_RUN_ID", None)
    findings = doctor.examine(options.root, options.devices)
    if options.json:
        _say(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            _say(f"{finding.level:8}{finding.what:36} {finding.detail}")
    return int(any(finding.level == "error" for finding in findings))


def _main_options(verb: argparse.ArgumentParser) -> None:
    _dry_run(verb)


def _main(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.core.documents import Comparison

    if options.dry_run:
        _say_costs(_studies(options))
        return
    if "MLFLOW_RUN_ID" in os.environ:
        _mark_launcher(options.root)
    pipeline.reproduce(options.root)
    _track(options)
    _register(options)
    for study in _studies(options):
        _say()
        _measure_leaks_of_demo(study)
        comparison = Comparison.read(study.reports_path / "comparison.json")
        _say_comparison(study, comparison)
        _say(f"report: {study.reports_path / 'report.html'}")


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
    from equipoise.service import tracking

    launched = tracking.claim_launched(root, ("main",))
    if launched is None:
        return
    if launched.obstacle:
        _say(f"{launched}.")
    else:
        tracking.mark_launcher(tracking.client(root), launched.run_id, {})


#: Verb -> what it does, and what adds its options.
COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None]]] = {
    "fetch": (_fetch, _fetch_options),
    "phantom": (_phantom, _phantom_options),
    "ingest": (_ingest, _one_study),
    "split": (_split, _one_study),
    "embed": (_embed, _embed_options),
    "scenario": (_scenario, _scenario_options),
    "compare": (_compare, _one_study),
    "judge": (_judge, _judge_options),
    "report": (_report, _report_options),
    "leakage": (_leakage, _leakage_options),
    "export": (_export, _export_options),
    "track": (_track, _track_options),
    "ui": (_ui, _ui_options),
    "register": (_register, _some_studies),
    "promote": (_promote, _promote_options),
    "rollback": (_rollback, _rollback_options),
    "audit": (_audit, _audit_options),
    "predict": (_predict, _predict_options),
    "explain": (_explain, _explain_options),
    "doctor": (_doctor, _doctor_options),
    "main": (_main, _main_options),
}
