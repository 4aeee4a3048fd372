"""The program: parse, call one room, show what came of it, set the exit code.

Paths that a user gives (`predict x.png`, `--out`, `--to`) mean what they say from the folder one stands in.
Paths of the project are below the folder of params.yaml, which is handed to every room.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from equipoise.cli import answers, images, parser, project, projects, registry, scenarios
from equipoise.cli.common import LOG, PROGRESS, QUIET, Options, Verb
from equipoise.core import config
from equipoise.core.environment import environment, masked, require_home, silenced
from equipoise.core.errors import ConfigError, DataError, EquipoiseError

#: Groups of verbs in the order of the help: the way of the data. A verb is added to one of them.
GROUPS = (
    projects.GROUP,
    images.GROUP,
    scenarios.GROUP,
    registry.GROUP,
    answers.GROUP,
    project.GROUP,
)
VERBS: dict[str, Verb] = {verb.name: verb for group in GROUPS for verb in group.verbs}
_INTERRUPTED = "Interrupted. Finished work is kept; the same command goes on from there."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 is well; 1 data; 2 settings, or no verb; 3 promotion refused; 4 audit finding; 5 server; 130 interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What is there at the end goes with the process: searching it for cycles takes up to 0.7 s of a verb.
    atexit.register(gc.freeze)
    _spell_out_what_an_encoding_lacks()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
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


def _run(arguments: Sequence[str]) -> int:
    program = parser.build(GROUPS)
    parser.refuse_unknown_options(program, arguments)
    options = program.parse_args(arguments)
    if options.verb is None:
        program.print_help()
        return ConfigError.exit_code
    options.root = _root(options)
    options.quiet |= environment(QUIET) is not None and not options.verbose
    with _logged(options), _missing_extras_told(options.verb):
        return VERBS[options.verb].run(options) or 0


@contextlib.contextmanager
def _missing_extras_told(verb: str) -> Iterator[None]:
    """Turn the error of a package that is not installed into a sentence with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        from equipoise.core import extras

        missing = extras.missing(error.name, f"`equipoise {verb}`")
        if missing is None:
            raise
        raise missing from error


def _spell_out_what_an_encoding_lacks() -> None:
    """Show a character that a terminal or a log cannot hold by its number; no verb ends for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook puts another object there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


@contextlib.contextmanager
def _logged(options: Options) -> Iterator[None]:
    """Let the loggers of Equipoise speak on stderr, as loud as was asked for.

    Warnings and progress are shown; steps with -v, details with -vv, errors alone with -q, also of other packages.
    """
    levels = {0: logging.WARNING, 1: logging.INFO}
    LOG.setLevel(logging.ERROR if options.quiet else levels.get(options.verbose, logging.DEBUG))
    PROGRESS.setLevel(logging.ERROR if options.quiet else logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    try:
        with silenced(logging.WARNING if options.quiet else 0):
            yield
    finally:
        LOG.removeHandler(handler)


def _root(options: Options) -> Path | None:
    """The folder with params.yaml; None where there is none and the verb does without."""
    if options.root:
        return config.find_root(Path(options.root))
    if VERBS[options.verb].needs_project:
        return config.find_root()
    return config.nearest_root(Path())


def _known_error(error: Exception) -> EquipoiseError | None:
    """What an error of a server or of the disk says in a sentence; None for a defect of ours."""
    tracking = sys.modules.get("equipoise.registry.tracking")
    if tracking is not None:  # where it was never imported no server was asked
        told = tracking.any_error(error)
        if told is not None:
            return told
    if isinstance(error, OSError):
        return DataError(
            f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}. "
            "Free space or permissions, then run the same command again: finished work is kept."
        )
    if isinstance(error, RuntimeError):
        try:
            require_home()
        except ConfigError as reason:
            return reason
    return None


def _tell(error: EquipoiseError) -> int:
    print(f"{type(error).__name__}: {masked(error)}", file=sys.stderr)
    return error.exit_code
