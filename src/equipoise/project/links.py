"""The two links of a project: to the images, which stay where they are, and to the installed program.

DVC looks at files below the project only. Through `data/raw/<study>` it sees the images, through `program` the code
that each stage depends on: after an upgrade it reruns the stages whose code has changed, and no others.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from equipoise.core.environment import PACKAGE, code_digest
from equipoise.core.errors import DataError
from equipoise.core.files import atomic_path

#: Name of the link to the program; dvc.yaml of a project names files behind it.
PROGRAM = "program"


def link_images(root: Path, study: str, images: Path) -> Path:
    """Link the folder of the images to where the stages of a study look for them; returns the link.

    git is told to leave it out, as `dvc add` does for what it adds.
    """
    link = root / "data/raw" / study
    _link(link, images.resolve())
    if link.is_symlink():
        _ignore(link)
    return link


def link_program(root: Path) -> None:
    """Let the link of a project lead to the program that runs.

    A checkout of Equipoise has its own code in `src`: its dvc.yaml names no file behind the link, and it gets none.
    """
    link = root / PROGRAM
    if not _is_named(root) or _shows_this_program(link):
        return
    if link.is_symlink():
        link.unlink()
    _link(link, PACKAGE)


def advice_to_link_program(root: Path) -> str:
    """What to do so that DVC sees the program that runs; empty where it does."""
    link = root / PROGRAM
    if not _is_named(root) or _shows_this_program(link):
        return ""
    state = f"leads to other code, {link.resolve()}" if link.is_symlink() else "is not there"
    return f"{PROGRAM} {state}. Link it: `{command(link, PACKAGE)}`"


def command(link: Path, target: Path) -> str:
    """The command that makes a link, for messages."""
    if os.name == "nt":
        return f'mklink /J "{link}" "{target}"'
    return f"ln -sfn {shlex.quote(str(target))} {shlex.quote(str(link))}"


def _is_named(root: Path) -> bool:
    """Whether the stages of dvc.yaml depend on files behind the link."""
    stages = root / "dvc.yaml"
    return stages.is_file() and f"- {PROGRAM}/" in stages.read_text("utf-8")


def _shows_this_program(link: Path) -> bool:
    """Whether a link leads to the program that runs, or to another installation of the same code."""
    if not link.is_dir():
        return False
    return _leads_to(link, PACKAGE) or code_digest(".", package=link.resolve()) == code_digest(".")


def _leads_to(link: Path, target: Path) -> bool:
    return link.is_dir() and link.resolve() == target.resolve()


def _ignore(link: Path) -> None:
    """Add a link to the .gitignore beside it."""
    path = link.with_name(".gitignore")
    ignored = path.read_text("utf-8") if path.is_file() else ""
    line = f"/{link.name}"
    if line in ignored.splitlines():
        return
    if ignored and not ignored.endswith("\n"):
        ignored += "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(f"{ignored}{line}\n", "utf-8")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if _leads_to(link, target):
        return
    try:
        os.symlink(target, link, target_is_directory=True)
    except OSError as error:
        raise DataError(
            f"{link} cannot be linked to {target}: {error.strerror or error}. "
            f"Remove what stands there, or link it yourself: `{command(link, target)}`"
        ) from error
