"""Pages of the docs site that are made, not written: a hook of mkdocs.

README, benchmarks, security, contributing and the changelog stand outside `docs/`, where people
look for them; their links are turned to the pages of the site. The reference of commands comes from
the parser of the command line, that of settings from params.yaml and the classes that check it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "src"))

from equipoise.cli import parser, program  # noqa: E402 - src must be on the path
from equipoise.core import config  # noqa: E402

#: File of the repository -> page of the site.
PAGE_OF = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
#: Kinds of "this or that" in an annotation.
_UNIONS = (Union, UnionType)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for source, page in PAGE_OF.items():
        text = (REPO / source).read_text(encoding="utf-8")
        folder = Path(source).parent
        files.append(File.generated(config, page, content=with_links_to_pages(text, folder)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links from `docs/` to files outside it into links to their pages."""
    if page.file.generated_by is not None:
        return markdown
    folder = Path("docs") / Path(page.file.src_uri).parent
    return with_links_to_pages(markdown, folder)


def with_links_to_pages(text: str, folder: Path) -> str:
    """Turn the links of a page of the repository into links of the site.

    Args:
        text: Markdown.
        folder: Where it stands, inside the repository.

    >>> with_links_to_pages("[why](docs/checks.md#eq007), [rows](benchmarks/README.md)", Path())
    '[why](checks.md#eq007), [rows](benchmarks.md)'
    """

    def turned(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if "://" in target:
            return link[0]
        inside = Path(*_resolved(folder / target)).as_posix()
        page = PAGE_OF.get(inside, inside.removeprefix("docs/"))
        return f"]({page}{anchor})"

    return _LINK.sub(turned, text)


def _resolved(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return parts


# --- commands -------------------------------------------------------------------------------------


def commands_page() -> str:
    """What `equipoise VERB --help` says of every verb."""
    of_program = parser.build(program.GROUPS)
    lines = ["# Commands", "", *_options_table(of_program)]
    of_verbs = _verbs(of_program)
    for group in program.GROUPS:
        lines += ["", f"## {_sentence(group.title).rstrip('.')}"]
        for verb in group.verbs:
            lines += ["", f"### {verb.name}", "", _sentence(verb.purpose), ""]
            lines += ["```sh", verb.example, "```", ""]
            lines += _options_table(of_verbs[verb.name])
    return "\n".join(lines) + "\n"


def _verbs(of_program: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in of_program._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise ValueError("the parser has no verbs")


def _options_table(of_verb: argparse.ArgumentParser) -> list[str]:
    rows = ["| option | meaning |", "|---|---|"]
    for action in of_verb._actions:
        is_verb = isinstance(action, argparse._SubParsersAction)
        if is_verb or isinstance(action, argparse._HelpAction):
            continue
        rows.append(f"| {_spelled(action)} | {_cell(action.help or '')} |")
    return rows if len(rows) > 2 else []


def _spelled(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    if not action.option_strings:
        return f"`{_metavar(action)}`"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    """Text as it stands, in a cell of a table: nothing in it is markup."""
    one_line = " ".join(text.split()).replace("%%", "%").replace("<", "&lt;")
    return re.sub(r"([|*_{}\[\]])", r"\\\1", one_line)


# --- settings -------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of `params.yaml` with its default, what may stand there, and its comment."""
    comments = _comments((REPO / "params.yaml").read_text(encoding="utf-8"))
    lines = [
        "# Settings",
        "",
        "`params.yaml` holds every number once. A study is `defaults` with its own section laid",
        "over it; a name that does not exist is an error that tells the nearest one.",
    ]
    defaults = config.read_params(REPO)["defaults"]
    for section, field in config.Settings.model_fields.items():
        lines += ["", f"## {section}", ""]
        values = defaults.get(section)
        if not values:
            lines.append(_first_sentence(field.annotation))
            continue
        lines += ["| setting | default | may be | meaning |", "|---|---|---|---|"]
        allowed = _allowed_values(field.annotation)
        for name, value in values.items():
            comment = comments.get((section, name), "")
            cells = [f"`{name}`", f"`{_as_yaml(value)}`", allowed.get(name, ""), _cell(comment)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _comments(text: str) -> dict[tuple[str, str], str]:
    """Comments behind the settings of `defaults`, by section and name."""
    comments = {}
    section = ""
    block = text[text.index("\ndefaults:") :]
    for line in block[1:].splitlines()[1:]:
        if line and not line.startswith(" "):
            break
        if match := re.match(r"  (\w+):", line):
            section = match[1]
        if match := re.match(r"    (\w+):.*?\s# (.*)", line):
            comments[section, match[1]] = match[2]
    return comments


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", "")


#: Type -> what a reader of YAML calls it.
_WORDS = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    list: "list",
    tuple: "list",
    type(None): "null",
}


def _first_sentence(annotation: Any) -> str:
    model = _model_of(annotation)
    return _sentence((model.__doc__ or "").split("\n")[0]) if model is not None else ""


def _model_of(annotation: Any) -> Any:
    options = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    models = [option for option in options if hasattr(option, "model_fields")]
    return models[0] if models else None


def _allowed_values(annotation: Any) -> dict[str, str]:
    """What a setting may be, in words, by its name."""
    model = _model_of(annotation)
    if model is None:
        return {}
    return {name: _in_words(field) for name, field in model.model_fields.items()}


def _in_words(field: Any) -> str:
    return ", ".join(part for part in (_type(field.annotation), _bounds(field)) if part)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in _UNIONS:
        return " or ".join(_type(option) for option in get_args(annotation))
    return _WORDS.get(get_origin(annotation) or annotation, "mapping")


def _bounds(field: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = []
    for item in field.metadata:
        for name, sign in signs.items():
            bound = getattr(item, name, None)
            if bound is not None:
                bounds.append(f"{sign} {bound:g}")
    return ", ".join(bounds)
