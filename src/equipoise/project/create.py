"""A project of one's own: an empty folder in which `dvc repro`, `mlflow run .` and every verb work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from equipoise.core import config, environment, text
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path
from equipoise.project import edits, links
from equipoise.project.description import Description, Wish, describe

_TEMPLATES = Path(__file__).with_name("templates")
#: What stands in the templates for the name of the study, and for the program in conda.yaml.
STUDY = "__study__"
REQUIREMENT = "__requirement__"
#: File of a project -> its template.
_FILES = {
    "MLproject": "MLproject",
    "conda.yaml": "conda.yaml",
    "dvc.yaml": "stages.yaml",  # by its own name DVC would run it in a checkout
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".dvcignore": "dvcignore",
    ".dvc/config": "dvc_config",
    ".dvc/plots/page.html": "plots.html",
    ".dvc/.gitignore": "dvc_gitignore",
    ".dvc/plots/curves.json": "curves.json",
    "features/README.md": "features.md",
}
#: What may lie in a folder that counts as empty.
_HARMLESS = frozenset({".git", ".venv"})
#: What a folder holds in which `init` was killed; params.yaml comes last.
_UNFINISHED = frozenset({path.partition("/")[0] for path in _FILES} | {"data", "program"})
#: What `mlflow run` needs of the program.
_EXTRAS = ("keras", "mlops")


@dataclass(frozen=True)
class Made:
    """A project or a study that was made.

    Attributes:
        root: Folder of the project.
        study: Name of the study.
        sentences: What was recognised and done, for the user to judge.
    """

    root: Path
    study: str
    sentences: tuple[str, ...]


def init(folder: Path, wish: Wish, study: str | None = None) -> Made:
    """Make a project with one study in an empty or new folder. The images stay where they are.

    Args:
        folder: Of the project.
        wish: Images, positive class and table.
        study: Name of the study; that of the folder when left out.

    Raises:
        ConfigError: For a name that cannot be one, and without git.
        DataError: For a folder that is not empty, and for images or a table that cannot be used.
    """
    root = folder.resolve()
    name = study or root.name
    edits.require_name(name, " Name it with --study NAME.")
    environment.require_git()
    _require_empty(root)
    _require_apart(root, wish.images)
    description = describe(wish)
    root.mkdir(parents=True, exist_ok=True)
    for path, template in _FILES.items():
        _write(root / path, _filled(template, name))
    params = _with_study(config.PACKAGED_PARAMS.read_text("utf-8"), name, description, wish)
    linked = _linked(root, name, wish)
    said = (*description.sentences, linked, *_checkout(root))
    # The last file: where a kill came before it, the same command goes on.
    _write(root / config.PARAMS, params)
    return Made(root, name, said)


def add_study(root: Path, name: str, wish: Wish) -> Made:
    """Add a study to a project; comments and letters of params.yaml stay.

    Raises:
        ConfigError: For a name that is taken or cannot be one.
        DataError: For images or a table that cannot be used.
    """
    edits.require_name(name)
    path = root / config.PARAMS
    config.read_params(root)
    before = path.read_bytes().decode("utf-8")
    edits.require_new(before, name)
    _require_apart(root, wish.images)
    description = describe(wish)
    after = _with_study(before, name, description, wish)
    linked = _linked(root, name, wish)
    _write(path, after)
    return Made(root, name, (*description.sentences, linked))


def _with_study(params: str, name: str, description: Description, wish: Wish) -> str:
    comment = f"The images of data/raw/{name}; positive is {wish.positive}."
    sections = {"ingest": description.ingest, "split": description.split}
    lines = edits.study_lines(name, sections, " ".join(comment.split()))
    return edits.with_study(params, name, lines)


def _linked(root: Path, name: str, wish: Wish) -> str:
    link = links.link_images(root, name, wish.images)
    links.link_program(root)
    if not link.is_symlink():
        return f"the images lie in {link.relative_to(root)}, where nothing is written"
    return f"{link.relative_to(root)} links to {wish.images.resolve()}, where nothing is written"


def _filled(template: str, study: str) -> str:
    filled = (_TEMPLATES / template).read_text("utf-8").replace(STUDY, study)
    return filled.replace(REQUIREMENT, environment.requirement(*_EXTRAS))


def _write(path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode("utf-8"))


def _checkout(root: Path) -> Iterator[str]:
    """Make the folder a git checkout, unless it lies in one."""
    if environment.git("rev-parse", "--git-dir", folder=root) is not None:
        return
    if environment.git("init", "--quiet", folder=root) is None:
        raise ConfigError(
            f"`git init` failed in {root}; run it there, because DVC works inside a git checkout."
        )
    yield "it lay in no git checkout, and DVC works inside one: `git init` was run"


# --- what is refused ------------------------------------------------------------------------------


def _require_empty(root: Path) -> None:
    if root.is_file():
        raise DataError(f"{root} is a file. Name a folder that is empty or not there.")
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    held = [name for name in there if name not in _HARMLESS]
    if config.PARAMS not in held and set(held) <= _UNFINISHED:
        return
    if held:
        raise DataError(
            f"{root} is not empty ({text.first_of(held, 3, ', ')}). Name a folder that is empty or not there; "
            f"inside a project `equipoise study NAME` adds a study."
        )


def _require_apart(root: Path, images: Path) -> None:
    """Nothing is written among the images."""
    if root.is_relative_to(images.resolve()):
        raise DataError(
            f"The project {root} would lie inside the images' folder {images}, where nothing is written. "
            f"Name another folder for it."
        )
