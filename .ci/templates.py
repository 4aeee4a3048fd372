"""Makes the files that `equipoise init` writes from those of this checkout: `python .ci/templates.py`.

A setting, a stage or an entry point is therefore written once. A test says when this was forgotten.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "src"))

from equipoise.project import create  # noqa: E402 - src must be on the path

PACKAGE = REPO / "src/equipoise"
TEMPLATES = PACKAGE / "project/templates"
#: The backbone that a new project begins with: small, and quick on a laptop.
BACKBONE = "mobilenetv2"
#: Lines of the checkout's .gitignore that speak of developing.
_OF_DEVELOPERS = ("*.egg-info/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/")


def templates() -> dict[Path, str]:
    """File of the package -> its text."""
    return {
        PACKAGE / "core/params.yaml": params(),
        TEMPLATES / "stages.yaml": stages(),
        TEMPLATES / "MLproject": entry_points(),
        TEMPLATES / "conda.yaml": environment(),
        TEMPLATES / "gitignore": ignored(),
        TEMPLATES / "dvcignore": _text(".dvcignore"),
        TEMPLATES / "dvc_config": _text(".dvc/config"),
        TEMPLATES / "dvc_gitignore": _text(".dvc/.gitignore"),
        TEMPLATES / "curves.json": _text(".dvc/plots/curves.json"),
        TEMPLATES / "plots.html": _text(".dvc/plots/page.html"),
        TEMPLATES / "features.md": _text("features/README.md"),
    }


def params() -> str:
    """params.yaml with every default and no study."""
    head, _, _ = _cut(_text("params.yaml"), "\nstudies:\n")
    head = _replaced(head, r"(?m)^  studies: \[.*\]$", "  studies: []")
    head = _replaced(head, r"(?m)^  backbones: \[.*\]$", f"  backbones: [{BACKBONE}]")
    return f"{head}\nstudies:\n"


def stages() -> str:
    """dvc.yaml, whose commands are those of the installed program and whose code lies behind a link."""
    _, _, body = _cut(_text("dvc.yaml"), "stages:\n")
    body = body.replace("python src ", "equipoise ").replace("src/equipoise/", "program/")
    return (
        "# The architecture in stages, over names: adding a study, backbone or scenario to `run` in params.yaml\n"
        "# reruns nothing else. `program` is a link to the installed program: after an upgrade the stages run whose\n"
        "# code changed.\n"
        f"stages:\n{body}"
    )


def entry_points() -> str:
    """MLproject, likewise; nothing is drawn in a project of one's own."""
    text = _replaced(_text("MLproject"), r"(?m)^  phantom: .*\n", "")
    text = _replaced(text, r"name: equipoise\n", f"name: {create.STUDY}\n")
    text = text.replace("python src ", "equipoise ")
    text = text.replace("equipoise-demo", f"equipoise-{create.STUDY}")
    text = _replaced(text, r"default: demo\b", f"default: {create.STUDY}")
    return _replaced(text, r"default: densenet201\b", f"default: {BACKBONE}")


def environment() -> str:
    """conda.yaml with the program itself, from where it was installed."""
    text = _replaced(_text("conda.yaml"), r"^# Derived .*\n", "")
    return f'{text}      - "{create.REQUIREMENT}"\n'


def ignored() -> str:
    """.gitignore with the link to the program."""
    lines = [line for line in _text(".gitignore").splitlines() if line not in _OF_DEVELOPERS]
    return "\n".join([*lines, "/program", ""])


def _text(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def _cut(text: str, where: str) -> tuple[str, str, str]:
    if where not in text:
        raise ValueError(f"{where!r} is not there any more")
    return text.partition(where)


def _replaced(text: str, pattern: str, by: str) -> str:
    replaced, count = re.subn(pattern, by, text)
    if not count:
        raise ValueError(f"{pattern!r} fits nothing any more")
    return replaced


if __name__ == "__main__":
    for path, text in templates().items():
        path.write_text(text, encoding="utf-8")
