"""params.yaml with one study more: every other letter of it, comments included, stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from equipoise.core import yaml_text
from equipoise.core.config import PARAMS, Settings
from equipoise.core.errors import ConfigError

#: Words that YAML 1.1 takes for truth values: MLflow reads MLproject by that version.
_TRUTHS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
#: A study names files, stages of DVC and a model of the registry; a dot would be a key inside a key for DVC.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def require_name(name: str, advice: str = "") -> None:
    """Refuse a name that no study can bear.

    Args:
        name: The name that is wanted.
        advice: What to do, added to the sentence, with a space in front.

    Raises:
        ConfigError: With what is expected.
    """
    if _NAME.fullmatch(name) and name.casefold() not in _TRUTHS:
        return
    raise ConfigError(
        f"'{name:.100}' cannot be the name of a study: a letter is expected first, then letters, digits, '_' and '-', "
        f"and no word that YAML reads as a truth value.{advice}"
    )


def require_new(text: str, name: str) -> None:
    """Refuse the name of a study that params.yaml has.

    Args:
        text: Of params.yaml.
        name: Of the new study.
    """
    studies = yaml_text.parse(text, PARAMS).get("studies")
    if isinstance(studies, dict) and name in studies:
        raise ConfigError(
            f"There is a study '{name}' in {PARAMS}. Choose another name for the new one."
        )


def study_lines(name: str, sections: Mapping[str, str], comment: str) -> list[str]:
    """The lines of a study with every section, as they stand below `studies:`; inner lines are indented by two blanks.

    Args:
        name: Of the study.
        sections: Those that are not empty, in braces.
        comment: What is said above it.
    """
    lines = [f"# {comment}", f"{name}:"]
    for section in Settings.model_fields:
        lines.append(f"  {section}: {sections.get(section, '{}')}")
    return lines


def with_study(text: str, name: str, lines: list[str]) -> str:
    """The text of params.yaml with a study added, and with its name in `run.studies`.

    Args:
        text: As the file is.
        name: Of the study.
        lines: As `study_lines` makes them.

    Raises:
        ConfigError: When there is a study of this name, and where the file is written in a way that nothing can be
            added to; it then shows the lines to add by hand.
    """
    require_new(text, name)
    before = yaml_text.parse(text, PARAMS)
    newline = "\r\n" if "\r\n" in text else "\n"
    with_lines = _with_lines(text, lines, newline)
    if with_lines is not None:
        edited = _with_listed(with_lines, name, newline)
        if edited is not None and _is_as_wanted(before, edited, name, lines):
            return edited
    shown = "\n  ".join(lines)
    raise ConfigError(
        f"{PARAMS} is written in a way that no study can be added to without changing more. Add '{name}' to "
        f"run.studies, and below studies:\n  {shown}"
    )


def _with_lines(text: str, lines: list[str], newline: str) -> str | None:
    """The text with lines added at the end of `studies`; None where that stands in braces with something in it."""
    studies = yaml_text.value_of_key(yaml_text.compose(text), "studies")
    if studies is None:
        return None
    names = yaml_text.children(studies)
    if names and yaml_text.is_in_brackets(studies):
        return None
    indent = names[0].start_mark.column if names else 2
    block = "".join(f"{newline}{' ' * indent}{line}" for line in lines)
    if names:
        place = _end_of_line(text, yaml_text.end_of(studies))
        return text[:place] + newline + block + text[place:]
    # null, {} or nothing: the lines take its place.
    start, end = studies.start_mark.index, studies.end_mark.index
    return text[:start].rstrip(" ") + block + text[end:]


def _with_listed(text: str, name: str, newline: str) -> str | None:
    """The text with a name added to the list `run.studies`; None where there is no list."""
    run = yaml_text.value_of_key(yaml_text.compose(text), "run")
    listed = yaml_text.value_of_key(run, "studies")
    if listed is None:
        return None
    items = yaml_text.children(listed)
    if not items and not yaml_text.is_in_brackets(listed):
        return None
    if not items:
        place = listed.end_mark.index - 1
        return text[:place] + name + text[place:]
    place = yaml_text.end_of(items[-1])
    if yaml_text.is_in_brackets(listed):
        return f"{text[:place]}, {name}{text[place:]}"
    place = _end_of_line(text, place)
    indent = " " * listed.start_mark.column
    return f"{text[:place]}{newline}{indent}- {name}{text[place:]}"


def _end_of_line(text: str, place: int) -> int:
    """Position behind the last character of the line in which a place is."""
    ends = re.compile(r"\r?\n|\Z").search(text, place)
    return ends.start() if ends else len(text)


def _is_as_wanted(before: dict[str, Any], edited: str, name: str, lines: list[str]) -> bool:
    """Whether an edited text says what the text before said, and the study besides."""
    try:
        after = yaml_text.parse(edited, PARAMS)
    except ConfigError:
        return False
    added = yaml_text.parse("\n".join(lines), PARAMS)
    before["studies"] = {**(before["studies"] or {}), **added}
    before["run"]["studies"] = [*before["run"]["studies"], name]
    return after == before
