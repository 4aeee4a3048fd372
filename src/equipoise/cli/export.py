"""The verb export: the images of a study, or a model, for other tools."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli.common import ArgumentParser, Options, Verb, load_study, say
from equipoise.core.errors import ConfigError

#: What is written: the images of a study, or a model.
_IMAGE_LAYOUTS = ("folders", "csv")
_MODEL_LAYOUTS = ("onnx", "saved_model")


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("--study", help="a study of params.yaml")
    parser.add_argument("--layout", required=True, choices=(*_IMAGE_LAYOUTS, *_MODEL_LAYOUTS))
    parser.add_argument(
        "--scenario", help="train rows as this scenario's plan draws them, or its model"
    )
    parser.add_argument("--backbone", help="of that scenario")
    parser.add_argument("--model", help="a registered model, as for predict (onnx, saved_model)")
    parser.add_argument("--to", help="folder to make (default: exports/STUDY/...)")
    parser.add_argument("--copy", action="store_true", help="copy files instead of linking them")


def _export(options: Options) -> None:
    if options.layout in _MODEL_LAYOUTS:
        _export_model(options)
    else:
        _export_images(options)


def _export_images(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.use import export

    if options.model or not options.study:
        raise ConfigError(
            f"--layout {options.layout} writes the images of a study: name one with --study, "
            f"and no --model."
        )
    folder = Path(options.to) if options.to else None
    study = load_study(options)
    pipeline.require_current(study)
    done = export.export_study(
        study=study,
        layout=options.layout,
        scenario=options.scenario,
        backbone=options.backbone,
        to=folder,
        copy=options.copy,
    )
    if not done.files:
        say(f"{done.folder} holds this export already; nothing changed")
        return
    say(f"{done.files} files written to {done.folder}")
    if options.layout == "folders" and not options.copy:
        say("  links to the originals where the disk allows it: use --copy before editing in place")


def _export_model(options: Options) -> None:
    from equipoise.use import model_export

    result = (options.study, options.backbone, options.scenario)
    names_model = bool(options.model)
    names_one = all(result) if not names_model else not any(result)
    if not names_one or options.copy:
        raise ConfigError(
            f"--layout {options.layout} writes one model: name it with --model, for example "
            f"models:/equipoise-demo@champion, or with --study, --backbone and --scenario, and without --copy."
        )
    to = Path(options.to) if options.to else None
    if names_model:
        lines = model_export.export_registered(options.model, options.layout, options.root, to)
    else:
        study = load_study(options)
        lines = model_export.export_result(
            study, options.backbone, options.scenario, options.layout, to
        )
    for line in lines:
        say(line)


VERB = Verb(
    "export",
    "for other tools: train, val and test as folders or CSV, a model as ONNX or SavedModel",
    _export,
    _export_options,
    example="equipoise export --study demo --layout folders --to exports/demo",
)
