"""Verbs that make a project, and add a study to one: init, study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.cli.common import ArgumentParser, Group, Options, Verb, say

if TYPE_CHECKING:
    from equipoise.project.create import Made
    from equipoise.project.description import Wish


def _init_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", help="of the project: empty, or not there yet")
    parser.add_argument(
        "--study", metavar="NAME", help="name of its study (default: that of the folder)"
    )
    _wish_options(parser)


def _study_options(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="of the new study")
    _wish_options(parser)


def _wish_options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument(
        "--positive", required=True, metavar="CLASS", help="the class that is the disease"
    )
    parser.add_argument("--table", metavar="CSV", help="in that folder: labels, patients, sides")
    for column in ("image", "label", "patient", "split"):
        parser.add_argument(f"--{column}-column", metavar="NAME", help=f"column of the {column}")


def _init(options: Options) -> None:
    from equipoise.project import create

    made = create.init(Path(options.folder), _wish(options), options.study)
    _say_made(made)
    say(f"next: cd {options.folder} && git add -A && equipoise doctor && dvc repro")


def _study(options: Options) -> None:
    from equipoise.project import create

    _say_made(create.add_study(options.root, options.name, _wish(options)))
    say("next: equipoise doctor && dvc repro")


def _wish(options: Options) -> Wish:
    from equipoise.project.description import Columns, Wish

    columns = Columns(
        image=options.image_column,
        label=options.label_column,
        patient=options.patient_column,
        split=options.split_column,
    )
    table = Path(options.table) if options.table else None
    return Wish(Path(options.images), options.positive, table, columns)


def _say_made(made: Made) -> None:
    say(f"study {made.study} in {made.root}")
    for sentence in made.sentences:
        say(f"  {sentence}")


GROUP = Group(
    "your own images",
    (
        Verb(
            "init",
            "make a project for your own images in an empty folder",
            _init,
            _init_options,
            example="equipoise init ../lungs --images ~/films --positive pneumonia",
            needs_project=False,
        ),
        Verb(
            "study",
            "add a study of other images to a project",
            _study,
            _study_options,
            example="equipoise study slides --images ~/slides --positive malignant --table labels.csv",
        ),
    ),
)
