"""docs/strategies.md and the README say what the files of the strategies say."""

import re

import pytest

from conftest import REPO, of_ci
from equipoise.strategies import base


@pytest.fixture(scope="module")
def listing():
    return of_ci("strategies")


def test_the_page_is_made_from_the_files(listing):
    made = "Run `python .ci/strategies.py`."
    assert (REPO / "docs/strategies.md").read_text(encoding="utf-8") == listing.page(), made


def test_the_page_holds_every_strategy_with_its_numbers(listing):
    page = listing.page()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", page, flags=re.M))
    assert sorted(rows) == base.names()
    assert "`gamma`: 2, 0 to 5, 0" in rows["focal"]
    assert "`copies`: 5, 0 to K, 0" in rows["weighted_augment"]
    columns = {name: row.count(" | ") for name, row in rows.items()}
    # What all samplers share is said once, above their table.
    assert {columns.pop(name) for name in base.names() if name.startswith("imblearn_")} == {2}
    assert set(columns.values()) == {3}


def test_the_page_shows_in_any_reader_of_markdown(listing):
    page = listing.page()
    assert "$" not in page
    assert not re.search(r"(?<!\()https://", page), "an address that is no link"


@pytest.mark.parametrize("name", base.names())
def test_a_strategy_begins_with_a_sentence_and_names_its_limits_and_its_source(listing, name):
    row = listing.row(name)
    assert re.fullmatch(r"[A-Z][^:]+: [^$\\]+\.", row.does), "a sentence without a formula"
    assert re.match(r"Should (lose|tie)\b", row.limits)
    assert re.search(r"\d{4}|scikit-learn|`class_weight`", row.source)


def test_a_strategy_that_does_not_say_when_it_loses_is_named(listing):
    class Silent(base.Strategy):
        """Says nothing."""

    with pytest.raises(ValueError, match="no paragraph of its docstring begins with 'Should '"):
        listing.paragraph(Silent, "Should ")
