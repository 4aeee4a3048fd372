"""Verbs from raw images to features: fetch, phantom, ingest, split, embed."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli.common import (
    ArgumentParser,
    Group,
    Options,
    Verb,
    dry_run,
    load_study,
    note,
    one_backbone,
    one_study,
    say,
    say_costs,
)


def _fetch_options(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", help="chest_xray or breakhis")
    parser.add_argument("--to", help="folder to make (default: data/raw/DATASET)")
    parser.add_argument(
        "--from", dest="address", help="another address of the same archive, or a file"
    )


def _fetch(options: Options) -> None:
    from equipoise.ingest import fetch

    folder = Path(options.to) if options.to else None
    fetch.run(options.dataset, folder, options.address, say, root=options.root)


def _phantom_options(parser: ArgumentParser) -> None:
    parser.add_argument("--study", default="demo", help="a study of params.yaml (default: demo)")


def _phantom(options: Options) -> None:
    from equipoise import pipeline

    study = load_study(options)
    files = pipeline.draw_phantoms(study)
    say(f"{files} files drawn into {study.raw}")


def _ingest(options: Options) -> None:
    from equipoise.ingest import stage
    from equipoise.ingest.summary import summary_text

    done = stage.run(load_study(options))
    say(summary_text(done.summary, done.quarantined, done.remarks))


def _split(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.split import stage

    study = load_study(options)
    pipeline.require_current(study)
    done = stage.run(study)
    say(stage.summary_text(done.summary))


def _embed_options(parser: ArgumentParser) -> None:
    one_study(parser)
    one_backbone(parser)
    dry_run(parser)


def _embed(options: Options) -> None:
    from equipoise import pipeline
    from equipoise.core import parallel
    from equipoise.embed import imported, stage

    study = load_study(options)
    settings = study.settings.embed
    imported.require_known(settings, options.backbone)
    if options.dry_run:
        say_costs([study], options.backbone, [])
        return
    pipeline.require_current(study)
    timer = parallel.Timer()
    if imported.is_imported(settings, options.backbone):
        note(f"reading the vectors of {options.backbone}")
    else:
        weights = settings.weights_for(options.backbone)
        note(f"building {options.backbone}, weights: {weights}")
    done = stage.run(study, options.backbone)
    say(f"{stage.result_text(done)} ({timer})")


GROUP = Group(
    "raw images to features",
    (
        Verb(
            "fetch",
            "download, check and unpack a published dataset, and put it under DVC",
            _fetch,
            _fetch_options,
            example="equipoise fetch breakhis",
        ),
        Verb(
            "phantom",
            "draw the raw images of the demo",
            _phantom,
            _phantom_options,
            example="equipoise phantom",
        ),
        Verb(
            "ingest",
            "raw folder -> manifest: verify, hash, quarantine, read the patient",
            _ingest,
            one_study,
            example="equipoise ingest --study demo",
        ),
        Verb(
            "split",
            "manifest -> train, val and test in whole patients",
            _split,
            one_study,
            example="equipoise split --study demo",
        ),
        Verb(
            "embed",
            "one backbone pass over every distinct image and view",
            _embed,
            _embed_options,
            example="equipoise embed --study demo --backbone vgg16 --dry-run",
        ),
    ),
)
