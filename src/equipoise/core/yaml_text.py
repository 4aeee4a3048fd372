"""YAML as version 1.2 and DVC read it, and where in a text its values stand."""

from __future__ import annotations

import re
from typing import Any

import yaml

from equipoise.core.errors import ConfigError
from equipoise.core.text import first_line

#: More values than this are refused; the shipped file has about 250.
_VALUES_MAX = 20_000


class _Loader(yaml.SafeLoader):
    """Reads YAML as version 1.2 and DVC do: only true and false are truth values.

    In version 1.1 a class called no is False, a study called 2024-01-05 a date, a patient 0012 the
    number 10. Keys are names, so they are the text that was written; twice the same is refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in written:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value:.100}' stands there twice",
                    problem_mark=key.start_mark,
                )
            written.add(key.value)
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _value_of(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


_MERGE = "tag:yaml.org,2002:merge"
#: The values that are no text, by the characters they begin with.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)?\.[0-9]+([eE][-+]?[0-9]+)?", "-+0123456789."),
    (
        "float",
        r"[-+]?[0-9]+\.([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def parse(text: str, where: str) -> Any:
    """Read YAML.

    Anchors that repeat each other without end are refused before anything walks through them.
    """
    try:
        value = _value_of(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{where} is not valid YAML: {first_line(error)}{position}.") from error
    # PyYAML raises these for a date that does not exist, a mapping as a key, very deep brackets.
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {str(error)[:100]}.") from error
    _require_few_values(value, where)
    return value


def _require_few_values(value: Any, where: str) -> None:
    waiting = [value]
    count = 0
    while waiting:
        item = waiting.pop()
        count += 1
        if count > _VALUES_MAX:
            raise ConfigError(
                f"{where} holds more than {_VALUES_MAX:,} values once its anchors are written out."
            )
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple | set):
            waiting += item


# --- places in a text, and writing ----------------------------------------------------------------


Node = yaml.Node


def compose(text: str) -> Node | None:
    """The values of a text with the places where they stand; `parse` has read it without an error."""
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def value_of_key(node: Node | None, key: str) -> Node | None:
    """The value that stands under a key of a mapping; None where it has no such key."""
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if isinstance(name, yaml.ScalarNode) and name.value == key:
            return value
    return None


def children(node: Node) -> list[Node]:
    """Keys and values of a mapping, or the items of a list, in their order; none of a scalar."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


def is_in_brackets(node: Node) -> bool:
    """Whether a mapping or list is written in one go, as {a: 1} or [a, b]."""
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def end_of(node: Node) -> int:
    """Position behind the last character of a value.

    The mark of a mapping in lines stands only where the next thing begins, behind comments that may speak of that.
    """
    if is_in_brackets(node) or not children(node):
        return node.end_mark.index
    return end_of(children(node)[-1])


def written(text: str) -> str:
    r"""Write a text as YAML that versions 1.1 and 1.2 read as this text; what nobody sees is spelled out.

    >>> written("malignant"), written("no"), written("4"), written("a: b")
    ('malignant', '"no"', '"4"', '"a: b"')
    >>> print(written("\N{NO-BREAK SPACE}12"))
    "\U000000a012"
    """
    is_plain = re.fullmatch(r"[A-Za-z][\w./-]*", text, flags=re.ASCII)
    if is_plain and yaml.safe_load(text) == text == _value_of(text):
        return text
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=len(text) * 10 + 99)
    return "".join(map(_visible, quoted.removesuffix("\n")))


def shortly_written(text: str) -> str:
    """The same, without quotes where a setting that is a name reads the bare text as this text.

    >>> shortly_written("no"), shortly_written("4"), shortly_written("~"), shortly_written("0x10")
    ('no', '4', '"~"', '"0x10"')
    """
    try:
        value = parse(f"name: {text}", "a name")["name"]
    except ConfigError:
        return written(text)
    is_name = isinstance(value, str | int | float) and not isinstance(value, bool)
    return text if is_name and str(value) == text else written(text)


def _visible(letter: str) -> str:
    """A letter, or where nobody would see it how it is written within double quotes."""
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
