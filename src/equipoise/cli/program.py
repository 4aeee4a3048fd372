"""The program: parse, call one room, show what came of it, set the exit code.

Paths that a user gives (`predict x.png`, `--out`, `--to`) mean what they say from the folder one stands in.
Paths of the project are below the folder of params.yaml, which is handed to every room.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from equipoise import __version__
from equipoise.cli import answers, images, project, registry, scenarios
from equipoise.cli.common import Options, Verb
from equipoise.core import config
from equipoise.core.environment import masked
from equipoise.core.errors import DataError, EquipoiseError

#: Files of verbs in the order of the help: the way of the data. A verb is added to the table of one of them.
GROUPS = (images, scenarios, registry, answers, project)
VERBS: dict[str, Verb] = {verb.name: verb for group in GROUPS for verb in group.VERBS}
_INTERRUPTED = "Interrupted. Finished work is kept; the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 is well; 1 data; 2 settings; 3 promotion refused; 4 audit finding; 5 server; 130 interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    try:
        options.root = _root(options)
        return VERBS[options.verb].run(options) or 0
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
    if VERBS[options.verb].needs_project:
        return config.find_root()
    return config.nearest_root(Path())


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="equipoise", description="Compare remedies for class imbalance fairly."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--root", help="folder with params.yaml (default: this one or the nearest above)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS.values():
        of_verb = verbs.add_parser(verb.name, help=verb.purpose, description=verb.purpose)
        verb.add_options(of_verb)
    return parser
