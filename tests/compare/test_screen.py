"""The printed comparison: verdicts first, a line for each scenario, never wider than a terminal."""

import pytest

from equipoise.compare import screen
from equipoise.core import shown
from equipoise.core.documents import CheckAnswer, Difference
from fabricate import comparisons, made

DELTA = Difference(value=-0.0004, low=-0.0009, high=0.0002, standard_error=0.0002, detectable=0.001)
REASON = "is equivalent to doing nothing: " + 30 * "word " + "end."
LONG = "imblearn_repeatededitednearestneighbours"


def compared(**fields):
    rows = {
        "baseline": comparisons.row(),
        "augment": comparisons.rival(
            "equivalent", DELTA, reason=f"augment {REASON}", switched_off=True
        ),
        LONG: comparisons.rival("inconclusive", DELTA, reason=f"{LONG} {REASON}"),
    }
    fields.setdefault("headline", "What a reader must know first.")
    fields.setdefault("comparisons", 2)
    return comparisons.comparison({made.BACKBONE: rows}, notes=[20 * "a note "], **fields)


def test_verdicts_come_first_and_no_line_is_too_long():
    text = str(screen.page(compared(), beside=["A leak would have been worth +0.045."]))
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= shown.WIDTH
    assert lines[0] == "What a reader must know first."
    places = [
        text.index(words) for words in ("difference [low", "- augment is", "A leak", "- a note")
    ]
    assert places == sorted(places)
    assert REASON in " ".join(text.replace("\n  ", " ").split("\n"))


def test_a_line_holds_verdict_difference_and_main_numbers():
    head, baseline, augment, long = str(screen.table(compared(), made.BACKBONE)).splitlines()
    assert head.split("  ")[0] == "made, vgg16"
    assert head.split()[-3:] == ["AUROC", "sens", "spec"]
    assert baseline.split() == ["baseline", "*", "baseline", "-", "0.800", "0.800", "0.800"]
    assert "equivalent (off)" in augment
    assert "-0.0004 [-0.0009, +0.0002]" in augment
    assert long.startswith("imblearn_repeatededit…")
    assert "(off): switched off by the search" in str(screen.page(compared()))


def test_a_primary_that_is_not_auroc_has_its_own_column():
    primary = "locked.specificity"
    delta = {primary: DELTA}
    rows = {"baseline": comparisons.row(), "focal": comparisons.row(verdict="better", delta=delta)}
    other = comparisons.comparison({made.BACKBONE: rows}, primary=primary, comparisons=1)
    assert "primary" in str(screen.table(other, made.BACKBONE)).splitlines()[0]
    assert "specificity at the locked threshold" in str(screen.page(other))


def test_a_number_that_does_not_exist_is_a_dash():
    nothing = comparisons.measured(value=float("nan"), low=None, high=None)
    lost = Difference(value=0.2, low=None, high=None)
    rows = {
        "baseline": comparisons.row(free={"auroc": nothing}),
        "focal": comparisons.rival("inconclusive", lost),
    }
    table = str(screen.table(comparisons.comparison({made.BACKBONE: rows}), made.BACKBONE))
    assert table.splitlines()[1].split()[-3] == "-"
    assert "+0.200 [-, -]" in table


@pytest.mark.parametrize(
    ("answer", "words"), [("passed", "passed"), ("not applicable", "not applicable")]
)
def test_eq007_is_said_where_no_note_says_it(answer, words):
    check = CheckAnswer(code="EQ007", answer=answer, detail="sizes reach AUROC 0.512")
    text = str(screen.page(compared(checks=[check])))
    assert f"- EQ007: {words}: sizes reach AUROC 0.512." in text
    found = CheckAnswer(code="EQ007", answer="failed", detail="sizes reach AUROC 0.912")
    assert "EQ007" not in str(screen.page(compared(checks=[found]))), "the notes say it"


def test_without_patient_ids_the_legend_says_so():
    text = str(screen.page(compared(units="images"))).replace("\n", " ")
    assert "intervals are per image: there are no patient ids" in text
