"""Text that several rooms print."""

import pytest

from equipoise.core.errors import DataError
from equipoise.core.text import first_line, in_words


@pytest.mark.parametrize(
    ("names", "words"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_names_are_joined_as_in_a_sentence(names, words):
    assert in_words(names) == words


def test_the_first_line_of_an_error_without_text_is_its_class():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_an_error_that_quotes_a_cell_of_any_length_stays_a_sentence_with_its_advice():
    error = DataError(f"Column age says '{'x' * 100_000}'. Correct it.")
    assert len(str(error)) < 3_200
    assert str(error).startswith("Column age says 'xxx")
    assert str(error).endswith("'. Correct it.")
    assert str(DataError("short")) == "short"
