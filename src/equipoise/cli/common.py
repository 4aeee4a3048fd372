"""What every verb is made of: its record, options that several verbs take, its study, and how it speaks."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from equipoise.core import config

Options = argparse.Namespace
ArgumentParser = argparse.ArgumentParser
#: Its children are the loggers of all rooms.
LOG = logging.getLogger("equipoise")
#: How far a work is, `core/parallel.py`.
PROGRESS = LOG.getChild("progress")
#: Set for the stages of `main -q`: DVC starts them without options.
QUIET = "EQUIPOISE_QUIET"


@dataclass(frozen=True)
class Verb:
    """A word of the command line and what it does.

    Attributes:
        name: The word, as it is typed.
        purpose: What it does, in a line of the help.
        run: What does it; it may return an exit code.
        add_options: Adds its options to a parser.
        example: A command that works on the demo, or on files that a reader has.
        needs_project: False where it reads params.yaml only if there is one.
    """

    name: str
    purpose: str
    run: Callable[[Options], int | None]
    add_options: Callable[[ArgumentParser], None]
    example: str
    needs_project: bool = True


@dataclass(frozen=True)
class Group:
    """Verbs that the help lists together.

    Attributes:
        title: What they have in common.
        verbs: In the order of their use.
    """

    title: str
    verbs: Sequence[Verb]


# --- speaking -------------------------------------------------------------------------------------


def say(what: object = "") -> None:
    """Show what was asked for on stdout, at once, so that a log has it before the next step.

    Args:
        what: Lines of text, which stay whole in a log, or something that takes the terminal's width.
    """
    if isinstance(what, str):
        print(_fitted(what) if sys.stdout.isatty() else what, flush=True)
        return
    from rich.console import Console

    from equipoise.core.shown import WIDTH, plain

    screen = Console(width=_columns(WIDTH), highlight=False)
    if screen.is_terminal:
        screen.print(what, crop=False)
    elif "COLUMNS" in os.environ:
        print(plain(what, screen.width), flush=True)  # type: ignore[arg-type]
    else:
        print(what, flush=True)


def say_json(text: str) -> None:
    """Print a document as it is, for a program to read."""
    print(text, flush=True)


def note(text: str) -> None:
    """Say a step on the way, which only `--verbose` shows."""
    LOG.info(text)


def _fitted(text: str) -> str:
    """Break lines between words where a terminal would break them anywhere."""
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        broken = textwrap.fill(
            line,
            _columns(80),
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(broken)
    return "\n".join(lines)


def _columns(otherwise: int) -> int:
    return shutil.get_terminal_size((otherwise, 24)).columns


# --- options that several verbs take ----------------------------------------------------------------


def one_study(parser: ArgumentParser) -> None:
    """The study to work on."""
    parser.add_argument("--study", required=True, help="a study of params.yaml")


def some_studies(parser: ArgumentParser) -> None:
    """One study, or all that `run` names."""
    parser.add_argument("--study", help="a study of params.yaml (default: all of run.studies)")


def one_backbone(parser: ArgumentParser) -> None:
    """The network, or the vectors that stand for one."""
    parser.add_argument(
        "--backbone",
        required=True,
        help="densenet201, vgg16, mobilenetv2 or a name of embed.features",
    )


def as_json(parser: ArgumentParser) -> None:
    """A document with stable keys in place of text."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def dry_run(parser: ArgumentParser) -> None:
    """Costs instead of work."""
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run and what it would cost"
    )


# --- what they need -------------------------------------------------------------------------------


def load_study(options: Options) -> config.Study:
    """The study that --study names."""
    return config.load_study(options.study, root=options.root)


def load_studies(options: Options) -> list[config.Study]:
    """The study that --study names; without it those of run.studies."""
    params = config.read_params(options.root)
    named = getattr(options, "study", None)
    names = [named] if named else config.run_studies(params)
    return [config.load_study(name, params, root=options.root) for name in names]


def say_costs(
    studies: list[config.Study], backbone: str | None = None, scenarios: list[str] | None = None
) -> None:
    """What would run and what it would cost; with a backbone the passes are counted exactly."""
    from equipoise import costs

    backbones = None if backbone is None else [backbone]
    for study in studies:
        steps = costs.steps(study, backbones, scenarios, exact=backbone is not None)
        for step in steps:
            say(f"{study.name}: {step}")
        say(f"{study.name}: {costs.total(steps)}")
