"""The networks of keras.applications: names, scaling, sizes and weights files, all asked of Keras itself."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.files import atomic_path
from equipoise.core.text import first_line
from equipoise.ingest.datasets.base import Archive

#: What `benchmarks/networks.py` saw when it built every network; a test compares it with Keras.
_SEEN = Path(__file__).with_name("networks.json")
#: A network that Keras has gained since, in estimates.
_USUAL_FEATURES = 2048
_USUAL_RATE = 10.0

_PRIVATE = "keras.src.applications."


class Application(NamedTuple):
    """Where keras.applications has a network: the module with its scaling, and its constructor."""

    module: str
    constructor: str


@dataclass(frozen=True)
class Seen:
    """What is known of a network without building it, for estimates and for `doctor`.

    Attributes:
        file: Name of its ImageNet weights file without the top; empty where it is not known.
        num_features: Width of the features.
        parameters: Numbers in the network without its top.
        trained_parameters: Those of its last block.
        default_size_px: Width and height that Keras proposes.
        smallest_size_px: Width and height that Keras accepts at least.
        images_per_second: Of a pass at 224 px on 2 cores.
    """

    file: str = ""
    num_features: int = _USUAL_FEATURES
    parameters: int = 0
    trained_parameters: int = 0
    default_size_px: int = 224
    smallest_size_px: int = 32
    images_per_second: float = _USUAL_RATE


@dataclass
class Answers:
    """What a constructor of Keras says of itself while it builds a network.

    Attributes:
        file: Name of the ImageNet weights file that it asks for.
        address: Where it says that the file lies.
        digest: MD5 or SHA-256 that it says the file has; None where it says none.
        default_size_px: Width and height it proposes; MobileNetV3 proposes none.
        smallest_size_px: Width and height it accepts at least.
    """

    file: str = ""
    address: str = ""
    digest: str | None = None
    default_size_px: int = 224
    smallest_size_px: int = 32


def names() -> dict[str, Application]:
    """Every classification network by its lower-case name, read from Keras' files without importing them.

    Without Keras they are those that `networks.json` lists.

    >>> names()["densenet121"]
    Application(module='densenet', constructor='DenseNet121')
    """
    package = importlib.util.find_spec("keras")
    if package is None or package.origin is None:
        return {name: Application(module="", constructor=name) for name in _all_seen()}
    return _names_in(Path(package.origin).with_name("applications") / "__init__.py")


@functools.cache
def _names_in(listing: Path) -> dict[str, Application]:
    """What the file imports that lists the networks of Keras."""
    known = {}
    for statement in ast.parse(listing.read_text("utf-8")).body:
        if not isinstance(statement, ast.ImportFrom) or not statement.module:
            continue
        # The others are modules: `from keras.applications import densenet as densenet`.
        if statement.module.startswith(_PRIVATE):
            module = statement.module.removeprefix(_PRIVATE)
            for constructor in statement.names:
                known[constructor.name.lower()] = Application(module, constructor.name)
    return known


def application(name: str) -> Application:
    """Where Keras has the network of a name.

    Raises:
        ConfigError: When it has none; the error names the nearest.
    """
    if name not in names():
        raise unknown_name("backbone", name, names())
    return names()[name]


@functools.cache
def _all_seen() -> dict[str, dict[str, Any]]:
    return json.loads(_SEEN.read_text("utf-8"))


def seen(name: str) -> Seen:
    """What is known of a network without building it; usual numbers for one that is not listed."""
    return Seen(**_all_seen().get(name, {}))


# --- building -------------------------------------------------------------------------------------


def build(keras: Any, name: str, pixels: Any) -> tuple[Any, Answers]:
    """Build a network without its top, behind its own scaling, average-pooled, with random weights.

    It is always built as for its ImageNet weights: EfficientNet has another scaling without them, and
    one network must mean one graph.

    Args:
        keras: The package.
        name: Of the network.
        pixels: Keras tensor, float32 (batch, size_px, size_px, 3), 0..255 RGB.

    Returns:
        The network, and what Keras said of it.

    Raises:
        ConfigError: For an unknown name, and for a size that Keras does not accept.
    """
    where = application(name)
    module = getattr(keras.applications, where.module)
    # Not of the module: that of MobileNetV3 has none.
    constructor = getattr(keras.applications, where.constructor)
    size_px = pixels.shape[1]
    with _asking(keras, name, size_px) as answers:
        network = constructor(
            include_top=False,
            weights="imagenet",
            input_tensor=module.preprocess_input(pixels),
            pooling="avg",
        )
    return network, answers


@contextlib.contextmanager
def _asking(keras: Any, name: str, size_px: int) -> Iterator[Answers]:
    """Note what constructors ask Keras for, and keep them from downloading and loading."""
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    answers = Answers()
    shape_of = imagenet_utils.obtain_input_shape

    def note_file(fname: str, origin: str, *_: Any, file_hash: str | None = None, **__: Any) -> str:
        answers.file = fname
        answers.address = origin
        answers.digest = file_hash
        return fname

    def note_sizes(shape: Any, default_size: int, min_size: int, *rest: Any, **named: Any) -> Any:
        answers.default_size_px = default_size
        answers.smallest_size_px = min_size
        if size_px < min_size:
            raise ConfigError(
                f"embed.image_size_px is {size_px}, and {name} takes {min_size} or more ({default_size} is "
                f"what Keras proposes)."
            )
        return shape_of(shape, default_size, min_size, *rest, **named)

    def load_nothing(*_: Any, **__: Any) -> None:
        pass

    with (
        _replaced(file_utils, "get_file", note_file),
        _replaced(imagenet_utils, "obtain_input_shape", note_sizes),
        _replaced(keras.Model, "load_weights", load_nothing),
        warnings.catch_warnings(),
    ):
        # MobileNet says that it takes its weights of 224 px.
        warnings.simplefilter("ignore")
        yield answers


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module or class another function for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# --- ImageNet weights -----------------------------------------------------------------------------


def weights_folder(root: Path) -> Path:
    """Where ImageNet weights are looked for before anything is downloaded; git-ignored."""
    return root / "weights"


def imagenet_is_there(name: str, root: Path) -> bool:
    """Whether the ImageNet weights of a network lie on this machine, without building it."""
    file = seen(name).file
    if not file:
        return False
    return (weights_folder(root) / file).is_file() or (_keras_folder() / file).is_file()


def imagenet_file(name: str, answers: Answers, root: Path) -> Path:
    """The ImageNet weights of a network: out of `weights/`, from Keras' own folder, or downloaded into it.

    Raises:
        DataError: When they cannot be downloaded, or are not the file whose digest Keras names.
    """
    given = weights_folder(root) / answers.file
    if given.is_file():
        return given
    kept = _keras_folder() / answers.file
    if kept.is_file() and _has_digest(kept, answers.digest):
        return kept
    try:
        _download(answers, kept)
    except (DataError, ConfigError) as error:
        reason, _, _ = first_line(error).partition(". ")
        digest = f"digest {answers.digest}" if answers.digest else "no published digest"
        raise DataError(
            f"The ImageNet weights of {name} could not be downloaded ({reason}). Download {answers.address} "
            f"({digest}) on a machine with internet and put it into {weights_folder(root)}/, or set "
            f"embed.weights to its path (`embed: {{weights: {{{name}: PATH}}}}`), or to `random` to try the "
            f"program."
        ) from error
    return kept


def _keras_folder() -> Path:
    """Where Keras itself keeps weights that it has downloaded."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return Path(home) / "models"


def _download(answers: Answers, kept: Path) -> None:
    """Download a weights file, going on where an earlier try stopped, and check its digest."""
    # A served model never downloads.
    from equipoise.core.parallel import announce
    from equipoise.ingest.download import download, forget

    part = kept.with_name(f"{kept.name}.part")
    download(answers.address, Archive(answers.address), part, say=announce)
    if not _has_digest(part, answers.digest):
        forget(part)
        raise DataError(f"{answers.address} is not the file that Keras expects: another digest")
    with atomic_path(kept) as temporary:
        os.replace(part, temporary)
    forget(part)


def _has_digest(path: Path, digest: str | None) -> bool:
    """Whether a file is the one that Keras means, in Keras' own way of checking."""
    if digest is None:
        return True
    from keras.src.utils import file_utils

    return bool(file_utils.validate_file(str(path), digest))
