"""The notebook of the docs runs from top to bottom, and its stored outputs are those of the run."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import REPO
from fabricate import notebooks

NOTEBOOKS = sorted((REPO / "docs").glob("*.ipynb"))
#: Drawings differ in their last digits from processor to processor; what is written in them does not.
_WORDS = re.compile(r"<text[^>]*>(.*?)</text>", flags=re.DOTALL)


def outputs(notebook: nbformat.NotebookNode) -> list:
    """What each cell shows, drawings by the words in them."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = dict(output.get("data", {}))
            if "image/svg+xml" in data:
                data["image/svg+xml"] = _WORDS.findall("".join(data["image/svg+xml"]))
            shown.append((output["output_type"], output.get("text"), data))
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_outputs_are_those_of_a_run(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    run = notebooks.executed(path, tmp_path)
    assert outputs(run) == outputs(stored), (
        f"write them again: python tests/fabricate/notebooks.py {path.relative_to(REPO)}"
    )
    assert [kind for kind, _, _ in outputs(run)] == ["execute_result"] * 7
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_tells_neither_where_nor_when_it_ran(path):
    text = path.read_text()
    assert not re.search(r"/home/|/tmp/|site-packages|iopub|202\d-\d\d-\d\d", text)
    for folder in (REPO.parent, Path.home(), Path(sys.prefix)):
        assert f"{folder}/" not in text
    assert len(text) < 60_000
