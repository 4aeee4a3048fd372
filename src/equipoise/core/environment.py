"""What this process runs on: environment variables, versions of packages and of our code, git."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from equipoise.core.errors import ConfigError
from equipoise.core.version import VERSION

#: Folder of Equipoise's own code.
PACKAGE = Path(__file__).parents[1]
#: Packages that numbers come from.
PACKAGES = (
    "tensorflow",
    "keras",
    "optuna",
    "scikit-learn",
    "imbalanced-learn",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
)

#: `user:password@` and `user@` after `://`, or `user:password@` without an address in front.
#: It begins at the start of a word and ends somewhere: a server may answer megabytes.
_CREDENTIALS = re.compile(r"(://)[^/\s'\"]*@|(?<![^\s:/@'\"])[^\s:/@'\"]+:[^\s/'\"]{1,1000}@")
#: `password=...` and the like, in addresses and in answers of servers.
_SECRET_SETTING = re.compile(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\";,]+")
_SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET")
#: Shorter values are words that a sentence may hold by chance.
_SECRET_MIN_CHARACTERS = 6


def environment(name: str) -> str | None:
    """Return an environment variable that Equipoise respects; None when it is unset or empty."""
    return os.environ.get(name) or None


def masked(text: object) -> str:
    """Hide passwords in a text.

    These are passwords in addresses, and the values of environment variables named like secrets.

    >>> masked("postgresql://ada:pa@ss@host/searches?sslpassword=x&a=1")
    'postgresql://***@host/searches?sslpassword=***&a=1'
    """
    shown = _CREDENTIALS.sub(r"\1***@", str(text))
    shown = _SECRET_SETTING.sub(r"\1***", shown)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_MIN_CHARACTERS:
            shown = shown.replace(value, "***")
    return shown


@functools.cache
def versions() -> dict[str, str]:
    """Return what the numbers of this process come from: Python, packages, a digest of our code."""
    version_of = {"python": ".".join(map(str, sys.version_info[:2]))}
    version_of.update(versions_of(*PACKAGES))
    version_of["equipoise"] = code_digest(".")[:12]
    return version_of


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say in words how a worker differs from this process; empty when it does not differ.

    Args:
        there: What the worker runs on, by name.
        here: What is expected; only these names are compared.

    >>> difference({"numpy": "2.3"}, {"numpy": "2.4"})
    'numpy is 2.3 there and 2.4 here'
    """
    differences = []
    for name, expected in here.items():
        actual = there.get(name)
        if actual != expected:
            differences.append(f"{name} is {actual} there and {expected} here")
    return ", ".join(differences)


@contextmanager
def silenced(level: int) -> Iterator[None]:
    """Keep back what any package logs up to a level, and its Python warnings, while the block runs.

    Args:
        level: Of `logging`; 0 keeps back nothing.
    """
    if not level:
        yield
        return
    before = silenced_level()
    logging.disable(max(level, before))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def silenced_level() -> int:
    """Up to which level nothing is logged now, for another process to do the same; 0 where all is."""
    return logging.root.manager.disable


def git(*words: str, folder: Path | None = None) -> str | None:
    """Return what a git command prints; None where there is no git or no checkout.

    Args:
        words: The command without `git` in front.
        folder: A folder inside the checkout; the working folder when left out.
    """
    command = ["git", *words]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip()


def require_git() -> None:
    """Refuse to go on without git.

    Raises:
        ConfigError: With what to install.
    """
    if shutil.which("git") is None:
        raise ConfigError("git is not installed, and DVC works inside a git checkout. Install git.")


def user() -> str:
    """Who runs this process; `unknown` under a number without a name, as in a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def require_home() -> None:
    """Refuse to go on where this user has no home folder, as under a number without a name.

    Raises:
        ConfigError: With what to set.
    """
    try:
        Path.home()
    except RuntimeError as error:
        raise ConfigError(
            "This user has no home folder, and DVC and MLflow do not start without one. Set HOME to a folder that "
            "may be written."
        ) from error


def requirement(*extras: str) -> str:
    """What pip has to be told to install this program again.

    Where it came from a file, a folder or git, its address stands in it (PEP 610): a name alone would be asked of an
    index, where somebody else's package may bear it.

    Args:
        extras: Of pyproject.toml.
    """
    wanted = f"equipoise[{','.join(extras)}]"
    try:
        origin = importlib.metadata.distribution("equipoise").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        origin = None
    if not origin:
        return f"{wanted}=={VERSION}"
    told = json.loads(origin)
    address = told["url"]
    versioned = told.get("vcs_info")
    if versioned:
        address = f"{versioned['vcs']}+{address}@{versioned['commit_id']}"
    sha256 = told.get("archive_info", {}).get("hashes", {}).get("sha256")
    if sha256:  # MLflow keys environments by this text: another file is another environment
        address = f"{address}#sha256={sha256}"
    return f"{wanted} @ {masked(address)}"


def versions_of(*packages: str) -> dict[str, str]:
    """Installed version of each package; `none` where it is not installed."""
    return {name: _installed_version(name) for name in packages}


@functools.cache
def _installed_version(package: str) -> str:
    """As of the first time that it is asked for: a search of every round asks again, and a file is read for each."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def code_digest(*places: str, package: Path = PACKAGE) -> str:
    """Digest of a part of Equipoise's own code: other code, other digest.

    Args:
        places: Folders, with all that lies below them, or files, relative to the package.
        package: Folder of the package.
    """
    from equipoise.core.files import digest_of, file_digest  # pandas comes with it

    digests = {}
    for place in places:
        path = package / place
        files = path.rglob("*.py") if path.is_dir() else [path]
        for file in files:
            digests[file.relative_to(package).as_posix()] = file_digest(file)
    return digest_of(digests)
