"""The parser: its help, what a misspelt word is answered, the completion of shells, the versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from equipoise.cli.common import ArgumentParser, Group, Verb
from equipoise.core import config
from equipoise.core.errors import ConfigError, EquipoiseError, unknown_name
from equipoise.core.text import first_of
from equipoise.core.version import VERSION

_SHELLS = ("bash", "zsh", "tcsh")
#: Beside our own version: what numbers, runs and files come from.
_VERSIONS = ("tensorflow", "keras", "mlflow", "dvc", "optuna", "scikit-learn", "numpy", "pandas")
#: Names of a kind that the help of a verb shows; completion has all of them.
_NAMED = 20
#: Options whose values are names of the project, and where params.yaml has them.
_NAMES = {"study": "studies", "scenario": "scenarios", "backbone": "backbones"}
#: Lines of help are no longer, however wide the terminal is.
_WIDTH_MAX = 100


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of settings, in one sentence with the next step."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words that were given.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` shows an example."
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown_name(action.dest.replace("_", " "), value, action.choices)


class _VerbParser(Parser):
    """The parser of one verb: its help ends with an example and the names that its options take."""

    verb: Verb

    def format_help(self) -> str:
        parts = [super().format_help().rstrip(), f"example:\n  {self.verb.example}"]
        names = []
        for key, values in _names_taken(self).items():
            if values:
                names.append(f"  {key}: {first_of(values, _NAMED, ', ')}")
        if names:
            filled = [textwrap.fill(line, _width(), subsequent_indent="    ") for line in names]
            parts.append("\n".join(["names in this project:", *filled]))
        return "\n\n".join(parts) + "\n"


class _ProgramParser(Parser):
    """The parser of the program: its help lists the verbs by groups."""

    groups: Sequence[Group]

    def format_help(self) -> str:
        parts = [
            f"usage: {self.prog} [--root FOLDER] [-v | -q] VERB ...",
            self.description or "",
            *[_group_text(group) for group in self.groups],
            _options_text(self),
            f"`{self.prog} VERB --help` shows the options of a verb, an example, and the names it takes.",
        ]
        return "\n\n".join(parts) + "\n"


def build(groups: Sequence[Group]) -> ArgumentParser:
    """The parser of the program with all its verbs."""
    parser = _ProgramParser(
        prog="equipoise",
        description="Compares remedies for class imbalance fairly.",
        formatter_class=_formatter,
    )
    parser.groups = groups
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="folder with params.yaml (default: this one or the nearest above)",
    )
    parser.add_argument("--version", action=_ShowVersions, help="versions that numbers depend on")
    parser.add_argument(
        "--print-completion",
        action=_ShowCompletion,
        metavar="SHELL",
        choices=_SHELLS,
        help="completion of verbs, options and names for bash, zsh or tcsh",
    )
    _loudness(parser, default=0)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_VerbParser)
    for group in groups:
        for verb in group.verbs:
            of_verb = verbs.add_parser(
                verb.name, help=verb.purpose, description=verb.purpose, formatter_class=_formatter
            )
            of_verb.verb = verb
            verb.add_options(of_verb)
            _loudness(of_verb, default=argparse.SUPPRESS)
    return parser


def _loudness(parser: ArgumentParser, default: Any) -> None:
    """Options before and after the verb; a verb that is given none keeps what stood before it."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "-v", "--verbose", action="count", default=default, help="say each step; -vv: details too"
    )
    either.add_argument(
        "-q", "--quiet", action="store_true", default=default, help="no progress and no warnings"
    )


# --- misspelt options -----------------------------------------------------------------------------


def refuse_unknown_options(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Say which option was meant; argparse would first ask for what is required.

    Raises:
        ConfigError: For a long option that neither the program nor the verb has.
    """
    verbs = _verbs(parser)
    asked: ArgumentParser = parser
    for word in arguments:
        if word == "--":
            return
        if word in verbs and asked is parser:
            asked = verbs[word]
        elif word.startswith("--"):
            _require_option(asked, word.partition("=")[0])


def _require_option(parser: ArgumentParser, option: str) -> None:
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    if not any(name.startswith(option) for name in known):
        raise unknown_name("option", option, known, f" of `{parser.prog}`")


def _verbs(parser: ArgumentParser) -> Mapping[str, ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


# --- help -----------------------------------------------------------------------------------------


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDTH_MAX, 24)).columns, _WIDTH_MAX)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=28, width=_width())


def _group_text(group: Group) -> str:
    lines = [f"{group.title}:"]
    for verb in group.verbs:
        filled = textwrap.fill(
            verb.purpose,
            _width(),
            initial_indent=f"  {verb.name:<10}",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
        )
        lines.append(filled)
    return "\n".join(lines)


def _options_text(parser: ArgumentParser) -> str:
    formatter = parser._get_formatter()
    formatter.start_section("options")
    formatter.add_arguments(
        action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)
    )
    formatter.end_section()
    return formatter.format_help().rstrip()


def _names_taken(parser: ArgumentParser) -> dict[str, list[str]]:
    """Key of params.yaml -> its names, for the options that a verb has."""
    names = _project_names()
    taken = {_NAMES[action.dest] for action in parser._actions if action.dest in _NAMES}
    return {key: values for key, values in names.items() if key in taken}


def _project_names() -> dict[str, list[str]]:
    """Names that params.yaml has; nothing where it cannot be read. Nothing here needs pandas or TensorFlow."""
    root = config.nearest_root(Path())
    if root is None:
        return {}
    try:
        params = config.read_params(root)
    except EquipoiseError:
        return {}
    run = params.get("run")
    return {
        "studies": _keys(params.get("studies")),
        "scenarios": _keys(params.get("scenarios")),
        "backbones": _backbones(run if isinstance(run, Mapping) else {}),
    }


def _keys(section: Any) -> list[str]:
    return [str(key) for key in section] if isinstance(section, Mapping) else []


def _backbones(run: Mapping[str, Any]) -> list[str]:
    """What `run` names, and the networks of Keras."""
    from equipoise.embed import applications

    listed = run.get("backbones")
    named = [str(name) for name in listed] if isinstance(listed, list) else []
    return list(dict.fromkeys([*named, *applications.names()]))


# --- versions and completion ----------------------------------------------------------------------


class _Show(argparse.Action):
    """An option that prints something and ends the program."""

    def text(self, parser: ArgumentParser, value: Any) -> str:
        """What it prints."""
        raise NotImplementedError

    def __call__(
        self, parser: ArgumentParser, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        print(self.text(parser, values))
        parser.exit()


class _ShowVersions(_Show):
    def __init__(self, **words: Any):
        super().__init__(nargs=0, **words)

    def text(self, parser: ArgumentParser, value: Any) -> str:
        versions = {"equipoise": VERSION, "python": platform.python_version()}
        for name in _VERSIONS:
            versions[name] = _version(name)
        return "\n".join(f"{name} {version}" for name, version in versions.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


class _ShowCompletion(_Show):
    def text(self, parser: ArgumentParser, value: Any) -> str:
        import shtab

        for action in _completed(parser):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        names = _project_names()
        for of_verb in _verbs(parser).values():
            for action in of_verb._actions:
                known = names.get(_NAMES.get(action.dest, ""))
                if known:
                    action.choices = known
        return shtab.complete(parser, value)


def _completed(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """Options and words that are files."""
    files = {"files", "images", "image", "features", "out", "to", "root", "page", "address"}
    for one in (parser, *_verbs(parser).values()):
        yield from (action for action in one._actions if action.dest in files)
