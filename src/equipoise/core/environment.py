"""What this process runs on: environment variables, versions of packages and of Equipoise's own code, git."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import equipoise


def environment(name: str) -> str | None:
    """An environment variable that Equipoise respects, None when unset or empty."""
    return os.environ.get(name) or None


def masked(text: object) -> str:
    """Text without passwords: those in addresses, and the values of variables that are named like secrets.

    >>> masked("postgresql://ada:pa@ss@host/searches?sslpassword=x&a=1")
    'postgresql://***@host/searches?sslpassword=***&a=1'
    """
    shown = re.sub(
        r"(://)[^/\s'\"]*@|[^\s:/@'\"]+:[^\s/'\"]+@",
        lambda found: (found[1] or "") + "***@",
        str(text),
    )
    shown = re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\";,]+", r"\1***", shown)
    for name, value in os.environ.items():
        if re.search(r"PASSWORD|TOKEN|SECRET", name) and len(value) >= 6:
            shown = shown.replace(value, "***")
    return shown


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


@functools.cache
def versions() -> dict[str, str]:
    """What the numbers of this process come from: Python, packages, and a digest of Equipoise's own code."""
    from equipoise.core.files import digest_of, file_digest  # pandas comes with it

    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    code = Path(equipoise.__file__).parent
    return {
        **found,
        "equipoise": digest_of([file_digest(path) for path in sorted(code.rglob("*.py"))])[:12],
    }


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """How a worker differs, in words; nothing when it does not.

    >>> difference({"numpy": "2.3"}, {"numpy": "2.4"})
    'numpy is 2.3 there and 2.4 here'
    """
    return ", ".join(
        f"{key} is {there.get(key)} there and {here[key]} here"
        for key in here
        if there.get(key) != here[key]
    )


def git(*words: str) -> str | None:
    """What a git command says; None where there is no git checkout."""
    try:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True
        ).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None
