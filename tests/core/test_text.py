"""Text that several rooms print."""

import pytest

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
