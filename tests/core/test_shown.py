"""Tables and sentences: plain lines in a log, the width and colours of a terminal, nothing lost in either."""

import io

import pytest
from rich.console import Console

from equipoise.core.shown import WIDTH, Page, Sentences, Table, plain

LONG = "low end of the difference -0.073 [-0.118, -0.027], 0.867 against version 1's 0.939"
GATES = Table(
    [["EQ-G3", "-0.118", "failed", LONG], ["EQ-G8", "0", "passed", ""]],
    heads=["gate", "number", "verdict", ""],
    right=[1],
    wrapped=[3],
    judged=2,
)


def on_a_terminal(shown, width, **variables):
    file = io.StringIO()
    environment = {"TERM": "xterm-256color", **variables}
    Console(file=file, width=width, force_terminal=True, _environ=environment).print(shown)
    return file.getvalue()


def test_in_a_log_a_row_is_a_line_and_no_line_ends_with_spaces():
    lines = str(GATES).splitlines()
    assert len(lines) == 3
    assert lines[0] == "gate   number  verdict"
    assert lines[1].endswith(LONG)
    assert lines[2] == "EQ-G8       0  passed"
    assert "\x1b" not in str(GATES)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_gets_its_width_and_every_word(width):
    text = plain(GATES, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) > 3
    assert set(LONG.split()) <= set(text.split())


def test_a_verdict_has_a_colour_unless_the_user_wants_none():
    coloured = on_a_terminal(GATES, 100)
    assert "\x1b[1;31mfailed" in coloured
    assert "\x1b[32mpassed" in coloured
    without = on_a_terminal(GATES, 100, NO_COLOR="1")
    assert "\x1b[3" not in without
    assert "failed" in without


def test_brackets_are_no_markup():
    assert str(Table([["[red]", "[0.1, 0.2]"]])) == "[red]  [0.1, 0.2]"
    assert str(Sentences(["[bold] :smile: [/bold]"])) == "[bold] :smile: [/bold]"


def test_sentences_are_broken_between_words_below_their_mark():
    lines = str(Sentences(["word " * 40, "short"], mark="- ")).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line[:2] for line in lines] == ["- ", "  ", "  ", "- "]
    path = "/a/" + "very" * 50
    assert plain(Sentences([path]), 80) == path, "a path can be copied"


def test_parts_of_a_page_have_an_empty_line_between_them():
    page = Page([Sentences(["first"]), Table([["a", "b"]])])
    assert str(page) == "first\n\na  b"


def test_a_table_without_rows_is_empty_or_its_header():
    assert str(Table([])) == ""
    assert str(Table([], heads=["a", "b"])) == "a  b"
