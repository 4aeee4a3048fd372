"""The command line: parse, call one room, show what came of it, set the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.core import config, environment
from equipoise.core.errors import AuditFinding, ConfigError, DataError, EquipoiseError

VERBS = {
    "fetch": "download, check and unpack a published dataset, and put it under DVC",
    "phantom": "draw the raw images of the demo",
    "ingest": "raw folder -> manifest: verify, hash, quarantine, read the patient",
    "split": "manifest -> train, val and test in whole patients",
    "embed": "one backbone pass over every distinct image and view",
    "scenario": "tune, plan, fit, calibrate and predict one way of handling the imbalance",
    "compare": "paired differences to the baseline, the verdict and the page",
    "report": "write the page of a comparison again, and say which patients moved since a revision",
    "leakage": "what leaks would be worth: the baseline with patients split, and oversampled before the split",
    "export": "write train, val and test as folders or CSV, for other tools",
    "track": "mirror into MLflow every result that the store lacks",
    "register": "make each backbone's winner a version in the model registry",
    "promote": "move the alias champion to the challenger, or to a version",
    "rollback": "return the alias champion to the version before",
    "audit": "the log of promotions, refusals and rollbacks; `audit verify` finds gaps, edits and moved aliases",
    "predict": "images, folders, patterns or a CSV -> CSV or Parquet, with a registered model",
    "explain": "an image -> the decision of a registered model, and a map of what speaks for it",
    "doctor": "what this machine has for what params.yaml asks",
    "main": "dvc repro, track, register: the whole pipeline",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 data, 2 settings, 3 promotion refused, 4 audit finding, 5 server."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        os.chdir(config.find_root(Path(options.root) if options.root else None))
        return globals()[f"_{options.verb}"](options) or 0
    except EquipoiseError as error:
        return _tell(error)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(
            "Interrupted. Finished work is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        tracking = sys.modules.get(
            "equipoise.service.tracking"
        )  # where it was never imported no server was asked
        told = tracking.store_error(error) if tracking else None
        if told is None and isinstance(error, OSError):
            told = DataError(
                f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}. Free space or "
                "permissions, then run the same command again: finished work is kept."
            )
        if told is None:
            raise
        return _tell(told)


def _tell(error: EquipoiseError) -> int:
    print(f"{type(error).__name__}: {environment.masked(error)}", file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="equipoise", description="Compare remedies for class imbalance fairly."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--root", help="folder with params.yaml (default: this one or the nearest above)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {
        name: verbs.add_parser(name, help=text, description=text) for name, text in VERBS.items()
    }
    studied = (
        "phantom",
        "ingest",
        "split",
        "embed",
        "scenario",
        "compare",
        "report",
        "leakage",
        "export",
    )
    for name in (*studied, "promote", "rollback"):
        made[name].add_argument(
            "--study", required=name != "phantom", default="demo", help="a study of params.yaml"
        )
    for name in ("track", "register", "audit"):
        made[name].add_argument(
            "--study", help="a study of params.yaml (default: all of run.studies)"
        )
    for name in ("embed", "scenario", "leakage"):
        made[name].add_argument(
            "--backbone", required=True, help="densenet201, vgg16 or mobilenetv2"
        )
    made["scenario"].add_argument(
        "--scenario", required=True, help="a file of src/equipoise/strategies"
    )
    made["scenario"].add_argument("--trials", type=int, help="short for --set tune.trials=N")
    made["scenario"].add_argument(
        *("--set",),
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override; writes to results/adhoc",
    )
    made["fetch"].add_argument("dataset", help="chest_xray or breakhis")
    made["fetch"].add_argument("--to", help="folder to make (default: data/raw/DATASET)")
    made["fetch"].add_argument(
        "--from", dest="address", help="another address of the same archive, or a file"
    )
    made["report"].add_argument(
        "--against", metavar="REV", help="a git revision: say which patients moved since"
    )
    made["export"].add_argument("--layout", required=True, choices=("folders", "csv"))
    made["export"].add_argument("--scenario", help="train rows as this scenario's plan draws them")
    made["export"].add_argument("--backbone", help="of that scenario")
    made["export"].add_argument("--to", help="folder to make (default: exports/STUDY/...)")
    made["export"].add_argument(
        "--copy", action="store_true", help="copy files instead of linking them"
    )
    made["promote"].add_argument("--version", help="promote this version instead of the challenger")
    made["promote"].add_argument(
        "--force", action="store_true", help="although gates fail; goes with --reason"
    )
    made["promote"].add_argument("--reason", help="why; kept in the log")
    made["rollback"].add_argument("--reason", required=True, help="why; kept in the log")
    made["audit"].add_argument(
        "what", nargs="?", choices=("show", "verify"), default="show", help="default: show"
    )
    made["predict"].add_argument(
        "--model", required=True, help="for example models:/equipoise-demo@champion"
    )
    made["predict"].add_argument(
        "images", nargs="+", help="files, folders, patterns, or a CSV with the column path"
    )
    made["predict"].add_argument(
        "--out", default="predictions.csv", help=".csv or .parquet (default: predictions.csv)"
    )
    made["explain"].add_argument("image", help="an image file")
    made["explain"].add_argument("--model", required=True, help="as for predict")
    made["explain"].add_argument(
        "-o", "--out", default="explained.png", help="PNG to write (default: explained.png)"
    )
    made["explain"].add_argument(
        "--class", dest="class_name", help="map of this class (default: the one decided for)"
    )
    made["doctor"].add_argument("--json", action="store_true", help="print JSON")
    made["doctor"].add_argument(
        "--devices", action="store_true", help="load TensorFlow and name its devices"
    )
    for name in ("embed", "scenario", "main"):
        made[name].add_argument(
            "--dry-run", action="store_true", help="say what would run and what it would cost"
        )
    return parser


def _say(text: str = "") -> None:
    print(text, flush=True)


def _fetch(options: argparse.Namespace) -> None:
    from equipoise.ingest import fetch

    fetch.run(options.dataset, Path(options.to) if options.to else None, options.address, _say)


def _phantom(options: argparse.Namespace) -> None:
    from equipoise import pipeline

    study = config.load_study(options.study)
    _say(f"{pipeline.draw_phantoms(study)} files drawn into {study.raw}")


def _ingest(options: argparse.Namespace) -> None:
    from equipoise.ingest import stage as ingest

    _, summary = ingest.run(config.load_study(options.study))
    _say(
        f"{summary['images']} usable images of {summary['patients']} patients ({summary['completeness']})"
    )
    for name, row in summary["by_class"].items():
        roles = ["positive"] if name == summary["positive_class"] else []
        roles += ["minority"] if name in summary["minority_classes"] else []
        role = f" ({', '.join(roles)})" if roles else ""
        share = f"{100 * row['image_share']:.1f} %"
        _say(f"  {name}{role}: {row['images']} images ({share}), {row['patients']} patients")
    _say(
        f"  imbalance 1:{summary['imbalance_ratio']:.1f}; {summary['other_files_ignored']} other files ignored"
    )
    if summary["selection"]:
        _say(f"  only {summary['selection']}: {summary['not_selected']} images left out")
    if summary["near_copies"]:
        _say(
            f"  {summary['near_copies']} near copies stay with the patient of the picture they resemble"
        )
    if summary["pseudonymised"]:
        _say(
            f"  ids are keyed hashes; the way back lies in data/local/{options.study}.csv, on this machine only"
        )
    if not summary["patient_ids"]:
        _say("  no patient ids: every image counts as a patient, and intervals will be per image")
    if odd := ", ".join(f"{count} {name}" for name, count in summary["flagged"].items() if count):
        _say(f"  kept, and worth a look: {odd}")
    _say(f"  {summary['quarantined']} files quarantined" + (":" if summary["quarantined"] else ""))
    for item in summary["quarantine"][:10]:
        _say(f"    {item['image_id']}: {item['reason']}")
    if summary["quarantined"] > 10:
        _say(
            f"    and {summary['quarantined'] - 10} more in data/manifest/{options.study}.quarantine.csv"
        )


def _split(options: argparse.Namespace) -> None:
    from equipoise.split import stage as splits

    _, summary = splits.run(config.load_study(options.study))
    rounds = len(summary["rounds"])
    _say(
        f"{summary['scheme']}, {summary['patients']} patients by {summary['group_by']}, {rounds} round(s)"
    )
    for part, classes in summary["rounds"][0]["parts"].items():
        text = ", ".join(
            f"{name} {row['images']} images of {row['patients']} patients"
            for name, row in classes.items()
        )
        _say(f"  {part}: {text}")
    for check in summary["checks"]:
        _say(
            f"  {check['code']} {check['name']}: {check['answer']}{'; ' + check['detail'] if check['detail'] else ''}"
        )


def _dry_run(
    studies: list[config.Study], backbone: str | None = None, scenarios: list[str] | None = None
) -> None:
    from equipoise import pipeline

    for study in studies:
        found = pipeline.steps(
            study, [backbone] if backbone else None, scenarios, exact=backbone is not None
        )
        for line in (*found, pipeline.total(found)):
            _say(f"{study.name}: {line}")


def _embed(options: argparse.Namespace) -> None:
    from equipoise.core import parallel
    from equipoise.embed import backbones
    from equipoise.embed import stage as features

    backbones.load_row(options.backbone)
    timer = parallel.Timer()
    study = config.load_study(options.study)
    if options.dry_run:
        return _dry_run([study], options.backbone, [])
    _say(
        f"building {options.backbone}, weights: {study.settings.embed.weights_for(options.backbone)}"
    )
    meta = features.run(study, options.backbone)
    kind = (
        " (random weights: to try the program, not for results)"
        if meta["weights"] == "random"
        else ""
    )
    _say(
        f"{meta['passes']} features of {meta['num_features']} numbers in {meta['folder']}{kind}; "
        f"{meta['passes_now']} backbone passes now ({timer})"
    )


def _scenario(options: argparse.Namespace) -> None:
    from equipoise import pipeline
    from equipoise.core import parallel
    from equipoise.embed import backbones
    from equipoise.scenario import stage as scenario
    from equipoise.strategies import base as strategies

    backbones.load_row(options.backbone)
    strategies.load_strategy(options.scenario)
    overrides = dict(config.parse_override(text) for text in options.set)
    if options.trials is not None:
        overrides["tune.trials"] = options.trials
    study = config.load_study(options.study, overrides=overrides)
    folder = study.result_path(options.backbone, options.scenario)
    if overrides:
        folder = pipeline.adhoc_folder(study, options.backbone, options.scenario, overrides)
    if options.dry_run:
        return _dry_run([study], options.backbone, [options.scenario])
    pipeline.ensure(study, options.backbone, _say)
    timer = parallel.Timer()
    summary = scenario.run(study, options.backbone, options.scenario, folder)
    cells = summary["metrics"]
    shown = [("free", "auroc"), ("free", "specificity_at_sensitivity")]
    text = ", ".join(
        f"{name.replace('_', ' ')} {cells[point][name]['value']:.3f} "
        f"[{cells[point][name]['low']:.3f}, {cells[point][name]['high']:.3f}]"
        for point, name in shown
        if name in cells[point]
    )
    _say(
        f"{options.scenario} on {study.name}, {options.backbone}: test {text} ({timer}); written to {folder}"
    )
    if "MLFLOW_RUN_ID" in os.environ:
        from equipoise.service import tracking

        adopted = tracking.adopted_run()
        if adopted is None:
            _say(
                "The run that launched this is not in this store; set MLFLOW_TRACKING_URI to an absolute address."
            )
            return
        run_id, fresh = tracking.mirror(
            tracking.client(), study, options.backbone, options.scenario, folder, adopted
        )
        _say(f"MLflow run {run_id}: {'written' if fresh else 'already held this result'}")


def _compare(options: argparse.Namespace) -> None:
    from equipoise.compare import stage as compare
    from equipoise.compare.report import page as report

    study = config.load_study(options.study)
    comparison, results = compare.run(study)
    page = report.run(study, comparison, results)
    _print_comparison(comparison)
    _say(f"report: {page.resolve()}")


def _report(options: argparse.Namespace) -> None:
    from equipoise.compare import results as results_
    from equipoise.compare.report import page as report
    from equipoise.core.files import read_json
    from equipoise.evaluation import openings

    study = config.load_study(options.study)
    comparison = read_json(study.reports_path / "evidence.json")
    moved = None
    if options.against:
        from equipoise.split import revisions as versions

        moved = versions.moved_patients(study, options.against)
        _print_moved(moved)
    _say(f"report: {report.run(study, comparison, results_.read_results(study), moved).resolve()}")
    _say(openings.sentence(comparison))


def _print_moved(moved: dict[str, Any]) -> None:
    images = moved["images"]
    _say(
        f"{moved['moved_patients']} of {moved['patients']} patients moved since {moved['revision']}; {images['both']} "
        f"images in both, {images['new']} new, {images['gone']} gone"
    )
    for row in moved["moved"][:20]:
        place = f"repeat {row['repeat']}, fold {row['fold']}"
        _say(
            f"  {row['patient_id']}: {row['before']} -> {row['after']} ({row['images']} images, {place})"
        )
    if len(moved["moved"]) > 20:
        _say(f"  and {len(moved['moved']) - 20} more on the page")


def _leakage(options: argparse.Namespace) -> None:
    from equipoise import pipeline
    from equipoise.compare import leakage

    study = config.load_study(options.study)
    pipeline.ensure(study, options.backbone, _say)
    _say(leakage.table_text(leakage.run(study, options.backbone)))
    _say(f"written to {leakage.folder(study, options.backbone)}")


def _export(options: argparse.Namespace) -> None:
    from equipoise.service import export

    study = config.load_study(options.study)
    to = Path(options.to) if options.to else None
    folder, files = export.run(
        study, options.layout, options.scenario, options.backbone, to, options.copy
    )
    _say(
        f"{files} files written to {folder}"
        if files
        else f"{folder} holds this export already; nothing changed"
    )


def _print_comparison(comparison: dict[str, Any]) -> None:
    from equipoise.compare import wording

    _say(wording.table(comparison))
    _say(comparison["verdict"])
    for note in comparison["notes"]:
        _say(f"- {note}")


def _studies(options: argparse.Namespace) -> list[config.Study]:
    params = config.read_params()
    return [
        config.load_study(name, params)
        for name in ([options.study] if options.study else config.run_studies(params))
    ]


def _track(options: argparse.Namespace) -> None:
    from equipoise.service import tracking

    for study in _studies(options):
        done = tracking.track(study)
        written, present = len(done["written"]), len(done["present"])
        _say(f"{study.name}: {written} results written, {present} already in {tracking.address()}")


def _register(options: argparse.Namespace) -> None:
    from equipoise.service import audit
    from equipoise.service import register as registry

    for study in _studies(options):
        for row in registry.register(study):
            state = "registered" if row["new"] else "was registered"
            name = f"{audit.model_name(study.name)} version {row['version']}"
            _say(f"{row['scenario']} on {row['backbone']} {state} as {name}")


def _promote(options: argparse.Namespace) -> None:
    from equipoise.service import promotion

    study = config.load_study(options.study)
    _moved(promotion.promote(study, options.version, options.force, options.reason, _say))


def _rollback(options: argparse.Namespace) -> None:
    from equipoise.service import promotion

    _moved(promotion.rollback(config.load_study(options.study), options.reason, _say))


def _moved(done: dict[str, Any]) -> None:
    if not done["moved"]:
        _say(f"version {done['champion']} of {done['name']} is the champion already; nothing moved")
        return
    before = (
        f"version {done['previous']} is kept for rollback"
        if done["previous"]
        else "there was no champion"
    )
    forced = ", forced" if done["forced"] else ""
    _say(
        f"champion of {done['name']} is now version {done['champion']}; {before} (decision {done['decision']}{forced})"
    )


def _audit(options: argparse.Namespace) -> None:
    from equipoise.service import audit, tracking

    found, store = [], tracking.client()
    for study in _studies(options):
        name = audit.model_name(study.name)
        if options.what == "show":
            _say(audit.history_text(name, audit.read(store, name)))
            continue
        sentences = audit.verify(store, name)
        _say(f"{name}: " + ("\n  ".join(sentences) or "the log is whole"))
        found += sentences
    if found:
        raise AuditFinding(f"{len(found)} findings. docs/promotion.md says what to do about each.")


def _predict(options: argparse.Namespace) -> None:
    from equipoise.service import predict

    done = predict.run(options.model, options.images, Path(options.out), _say)
    marked = f", {done['flagged']} of them marked in `flags`" if done["flagged"] else ""
    _say(
        f"{done['predicted']} images predicted{marked}, {done['unreadable']} unreadable; written to {options.out}"
    )
    if not done["predicted"]:
        raise EquipoiseError("No image could be read; the column `error` of the file says why.")


def _explain(options: argparse.Namespace) -> None:
    from equipoise.compare import gradcam
    from equipoise.core.files import atomic_path
    from equipoise.service import evidence

    out = Path(options.out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigError(
            f"The picture is written as PNG, and {out} is no name of such a file. Use -o NAME.png."
        )
    try:
        content = Path(options.image).read_bytes()
    except OSError as error:
        raise DataError(f"{options.image} cannot be read: {error.strerror}.") from error
    predictor = getattr(evidence.load(options.model).unwrap_python_model(), "predictor", None)
    if predictor is None:
        raise ConfigError(f"{options.model} is no model of Equipoise, so its maps cannot be drawn.")
    explained = predictor.explain(content, options.class_name)
    with atomic_path(out) as temporary:
        gradcam.figure(explained.pixels, explained.heat, explained.text).savefig(
            temporary, format="png", dpi=150
        )
    _say(f"{options.image}: {explained.text}; written to {out}".replace("\n", "; "))


def _doctor(options: argparse.Namespace) -> int:
    from equipoise import doctor

    os.environ.pop("MLFLOW_RUN_ID", None)
    lines = doctor.examine(options.devices)
    if options.json:
        _say(json.dumps(lines, indent=2))
    else:
        for line in lines:
            _say(f"{line['level']:8}{line['what']:36} {line['detail']}")
    return int(any(line["level"] == "error" for line in lines))


def _main(options: argparse.Namespace) -> None:
    from equipoise import pipeline
    from equipoise.core.files import read_json

    if options.dry_run:
        options.study = None
        return _dry_run(_studies(options))
    launcher = "MLFLOW_RUN_ID" in os.environ
    if launcher:
        from equipoise.service import tracking

        run_id = tracking.adopted_run()
        if run_id:
            tracking.mark_launcher(tracking.client(), run_id, {})
    pipeline.reproduce()
    options.study = None
    _track(options)
    _register(options)
    for study in _studies(options):
        _say()
        _print_comparison(read_json(study.reports_path / "comparison.json"))
        _say(f"report: {(study.reports_path / 'report.html').resolve()}")
