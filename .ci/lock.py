"""Derives requirements.lock and conda.yaml from pyproject.toml, the one source of versions (`make lock`)."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Derived from pyproject.toml by `make lock`; do not edit.\n"


#: What `mlflow run` needs beside the light install; other extras are for who wants them.
CONDA_EXTRAS = ("keras", "mlops")


def direct_dependencies(root: Path = ROOT) -> list[str]:
    """Canonical names of the packages that every verb of MLproject needs, sorted."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in CONDA_EXTRAS:
        lines += project["optional-dependencies"][extra]
    return sorted(re.match(r"[A-Za-z0-9_.-]+", line).group().lower() for line in lines)


def locked_lines(lock: str) -> dict[str, list[str]]:
    """Package name -> its `name==version [; marker]` lines in the lock (several when versions differ by Python)."""
    lines: dict[str, list[str]] = {}
    for line in re.findall(r"^([a-z0-9][^\n\\]*==[^\n\\]*?)\s*\\?$", lock, flags=re.M):
        lines.setdefault(line.split("==")[0], []).append(line)
    return lines


def conda_text(lock: str, root: Path = ROOT) -> str:
    """The text of conda.yaml: Python, and what the verbs of MLproject need, pinned as in the lock."""
    locked = locked_lines(lock)
    # Dependencies only, never `-e .`: MLflow keys environments by this text, and would run another checkout's code.
    pins = [line for name in direct_dependencies(root) for line in locked[name]]
    quoted = "".join(f'      - "{pin}"\n' for pin in pins)
    return (
        f"{HEADER}name: equipoise\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n"
        f"  - pip:\n{quoted}"
    )


def main() -> None:
    """Resolve for every supported Python at once, with hashes and without any index address."""
    options = (
        "--extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url "
        "--no-emit-find-links --no-header --no-annotate --quiet --output-file requirements.lock"
    )
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *options.split()]
    command += sys.argv[1:]
    subprocess.run(command, cwd=ROOT, check=True)
    path = ROOT / "requirements.lock"
    lock = HEADER + path.read_text().removeprefix(HEADER)
    path.write_text(lock)
    (ROOT / "conda.yaml").write_text(conda_text(lock))


if __name__ == "__main__":
    main()
