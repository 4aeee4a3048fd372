"""What people mean by what they typed."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core import yaml_text
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import spellings


def _ids(values, aliases=None):
    return spellings.patient_ids(
        pd.Series(values, dtype=object), aliases or {}, "the table"
    ).tolist()


def _words_of_pandas():
    """What `read_csv` takes for missing, asked of pandas itself."""
    text = "id\n" + "\n".join(["NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A"])
    frame = pd.read_csv(pd.io.common.StringIO(text), dtype=str)
    assert frame["id"].isna().all()
    return text.splitlines()[1:]


@pytest.mark.parametrize(
    "word",
    [
        *[*_words_of_pandas(), "", "-", "?", "unknown", "Unknown", " n/a ", "(blank)", r"\N"],
        *["unbekannt", "k.A.", "keine Angabe", "inconnu", "desconocido", "неизвестно", "未知"],
    ],
)
def test_words_for_missing_are_missing(word):
    assert spellings.is_missing(word)
    assert _ids(["p1", word, "p2"]) == ["p1", "", "p2"]


@pytest.mark.parametrize("word", ["p1", "0", "N", "Nancy", "NA-12", "none2", "999"])
def test_ids_are_not_missing(word):
    assert _ids([word]) == [word]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0012", "12"),
        ("12", "12.0"),
        ("12", "12,00"),
        ("P12", "p12"),
        ("P 12", "P12"),
        ("site2-007", "site2-7"),
        ("\uff11\uff12", "12"),  # digits of full width
        ("P-12", "P_12"),
        ("P-12", "p12"),
        ("14-022", "14_22"),
        ("#12", "12"),
        ("'0012", "12"),
        ("12.", "12"),
        ("P\u200b12", "P12"),  # a blank without a width
        ("\u041012", "A12"),  # typed on a Russian keyboard
        ("\u0391\u039212", "ab12"),  # and on a Greek one
        ("\u0661\u0662", "12"),  # Arabic digits
    ],
)
def test_two_spellings_of_one_id_are_refused_until_they_are_decided(one, other):
    with pytest.raises(DataError, match="1 patient is written in several ways") as error:
        _ids([one, "other", other])
    assert repr(one) in str(error.value)
    assert repr(other) in str(error.value)
    assert _ids([one, "other", other], {one: other}) == [other, "other", other]
    assert _ids([one, other], {one: one, other: other}) == [one, other], "they are two people"
    with pytest.raises(DataError, match="several ways"):
        _ids([one, other], {one: one})


@pytest.mark.parametrize(
    ("one", "other"), [("12", "120"), ("1.05", "1.5"), ("p1", "q1"), ("1-11", "11-1"), ("10", "1")]
)
def test_ids_that_differ_otherwise_are_two_people(one, other):
    assert _ids([one, other]) == [one, other]


@given(st.integers(0, 10**6), st.integers(0, 4))
def test_numbers_fold_together_exactly_when_they_are_equal(number, zeros):
    written = f"{'0' * zeros}{number}"
    assert spellings.folded(written) == spellings.folded(f"{number}.0") == str(number)
    assert spellings.folded(written) != spellings.folded(str(number + 1))


@pytest.mark.parametrize(
    "word", ["ANONYMOUS", "Anonymized", "removed", "N.N.", "xxx", "*", "-1", "-999"]
)
def test_what_stands_for_an_id_that_was_taken_out_is_nobody(word):
    assert _ids(["p1", word]) == ["p1", ""]
    assert spellings.class_names(pd.Series([word])).tolist() == [word], "a class may be called so"


def test_the_error_shows_the_first_few_and_counts_the_others():
    ids = [f"{number:04d}" for number in range(1, 9)] + [str(number) for number in range(1, 9)]
    with pytest.raises(DataError) as error:
        _ids(ids)
    text = str(error.value)
    assert text.startswith(
        "In the table, 8 patients are written in several ways: '0001' and '1'; '0002' and '2'; "
    )
    assert "and 3 more" in text
    assert 'ingest.aliases: {"1": "0001"}' in text


def test_an_alias_that_an_error_names_can_be_pasted():
    with pytest.raises(DataError) as error:
        _ids(["P 1", "P\u00a01"])
    written = str(error.value).split("ingest.aliases: ")[1].split(";")[0]
    assert "\u00a0" not in written, "nobody would see it"
    aliases = yaml_text.parse(f"aliases: {written}", "the error")["aliases"]
    assert _ids(["P 1", "P\u00a01"], aliases) == ["P 1", "P 1"]


def test_an_alias_may_say_that_an_id_means_nobody():
    assert _ids(["999", "p1"], {"999": ""}) == ["", "p1"]
    assert _ids(["999", "p1"], {"999": "unknown"}) == ["", "p1"]


def test_aliases_that_cannot_be_meant_are_refused():
    with pytest.raises(
        ConfigError, match=r"names 'p3', which is no id of the table\. Found are: 'p1'"
    ):
        _ids(["p1", "p2"], {"p3": "p1"})
    with pytest.raises(ConfigError, match="from 'a' to 'b', and from there to 'c'"):
        _ids(["a", "b"], {"a": "b", "b": "c"})


@pytest.mark.parametrize("rounded", ["1.23457E+11", "1,2E+12", "2E+10"])
def test_ids_that_a_spreadsheet_has_rounded_are_refused(rounded):
    with pytest.raises(DataError, match="1 id that a spreadsheet has rounded"):
        _ids([rounded, "p1"])


def test_ids_that_were_wider_than_their_column_are_refused():
    with pytest.raises(DataError, match="1 id that a spreadsheet has replaced by #"):
        _ids(["########", "#12"])


@pytest.mark.parametrize("dated", ["1-Mar", "12-Okt", "3. Mai 2021", "2024-03-01 00:00:00"])
def test_ids_that_a_spreadsheet_has_turned_into_dates_are_refused(dated):
    with pytest.raises(DataError, match="1 id that a spreadsheet has turned into dates"):
        _ids([dated, "14-22549"])
    assert _ids([dated, "p1"], {dated: dated}) == [dated, "p1"], "it is meant so"
    assert _ids(["MAR-01", "2024-03-01"]) == ["MAR-01", "2024-03-01"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Viral Pneumonia", "viral_pneumonia"),
        ("non-tumor", "non tumor"),
        ("melanoma", "melanoma\u200b"),
        ("\u0130Y\u0130", "iyi"),
        ("1", "01"),
        ("1", "1.0"),
    ],
)
def test_names_of_one_class_have_one_key(one, other):
    assert spellings.class_key(one) == spellings.class_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1-2", "12"), ("-1", "1"), ("HER2+", "HER2-"), ("tumor", "tumors"), ("T1", "T10")],
)
def test_names_of_two_classes_have_two(one, other):
    assert spellings.class_key(one) != spellings.class_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NonTumor", "Non_Tumor"),
        ("no tumor", "notumor"),
        ("Covid19", "COVID-19"),
        ("na\u00efve", "naive"),
        ("class 0", "CLASS0"),
        ("\u041c\u0435l", "Mel"),  # two Russian letters
    ],
)
def test_classes_that_may_be_one_are_asked_about_and_not_joined(one, other):
    (told,) = spellings.remarks_on_alike([one, "x", other])
    assert one in told
    assert other in told
    names = spellings.class_names(pd.Series([one, "x", other]))
    assert names.nunique() == 3


def test_classes_of_other_meaning_are_not_asked_about():
    assert not spellings.remarks_on_alike(["HER2+", "HER2-", "1-2", "12", "-1", "1", "T1", "T10"])


def test_class_names_that_are_one_become_the_commonest():
    cells = pd.Series(["mel", "Mel", "nv", "mel", "none", "NA", "1.0", "1"])
    names = spellings.class_names(cells)
    assert names.tolist() == ["mel", "mel", "nv", "mel", "none", "", "1", "1"]
    assert spellings.joined_names(cells) == "'1.0' is '1' (1 row); 'Mel' is 'mel' (1 row)"
