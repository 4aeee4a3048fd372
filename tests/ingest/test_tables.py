"""CSV files as people have them: what pandas writes in any dialect is read back cell by cell."""

import csv
import io

import pandas as pd
import pytest

from equipoise.core.errors import DataError
from equipoise.ingest.tables import read_table

FRAME = pd.DataFrame(
    {
        "image": ["a/1.png", "a/2.png", "b/ü 3.png"],
        "Patient ID": ["0012", "1e5", "NA"],
        "note": ['he said "no", twice', "two\nlines", ""],
    }
)


def _written(tmp_path, content, name="patients.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _cells(table):
    return [table.column(name).tolist() for name in table.header if name]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_dialect_gives_the_same_cells(tmp_path, delimiter, encoding, line_end):
    text = FRAME.to_csv(
        sep=delimiter, index=False, lineterminator=line_end, quoting=csv.QUOTE_NONNUMERIC
    )
    table = read_table(_written(tmp_path, text.encode(encoding)))
    assert table.header == ("image", "Patient ID", "note")
    assert _cells(table) == [FRAME[name].tolist() for name in FRAME]
    assert table.remarks == ()


def test_a_table_of_windows_is_read_with_a_remark_that_shows_a_word(tmp_path):
    text = "image;patient_id\na.png;Müller\nb.png;Zoë\n"
    table = read_table(_written(tmp_path, text.encode("cp1252")))
    assert table.column("patient_id").tolist() == ["Müller", "Zoë"]
    (remark,) = table.remarks
    assert (
        "patients.csv is not in UTF-8 and was read as Windows-1252: line 2 says 'Müller'" in remark
    )


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
def test_the_line_that_excel_writes_names_the_delimiter(tmp_path, line):
    path = _written(tmp_path, f"{line}\r\nimage;note\r\na.png;1,5\r\nb.png\r\n")
    table = read_table(path)
    assert _cells(table) == [["a.png", "b.png"], ["1,5", ""]]
    assert table.cells.index.tolist() == [3, 4], "lines of the file, as an editor counts them"


def test_blanks_empty_rows_and_columns_without_a_name_are_left_out(tmp_path):
    text = ' ,image , "patient_id",,\n0, a.png ,p1,,\n,,,,\n\n1,b.png,\xa0p2\u200b,,\n'
    table = read_table(_written(tmp_path, text))
    assert table.names == "image, patient_id"
    assert _cells(table) == [["a.png", "b.png"], ["p1", "p2"]]


def test_cells_that_a_row_lacks_or_has_empty_beyond_the_header_are_nothing(tmp_path):
    table = read_table(_written(tmp_path, "image,patient_id\na.png,p1,\nb.png\n"))
    assert _cells(table) == [["a.png", "b.png"], ["p1", ""]]


@pytest.mark.parametrize("name", ["Patient ID", "patient_id", " PATIENT-ID".strip(), "patient id"])
def test_a_column_is_found_whatever_its_case_and_blanks(tmp_path, name):
    table = read_table(_written(tmp_path, FRAME.to_csv(index=False)))
    assert table.column(name).tolist() == ["0012", "1e5", "NA"]
    assert not table.has("patient")


def test_the_exact_name_wins_and_two_like_it_are_refused(tmp_path):
    table = read_table(_written(tmp_path, "Image,image,ID,id \nx,a.png,1,2\n"))
    assert table.column("image").tolist() == ["a.png"]
    assert table.column("id").tolist() == ["2"]
    with pytest.raises(DataError, match=r"2 columns that may be Id: ID, id\. Rename one"):
        table.column("Id")
    twice = read_table(_written(tmp_path, "image,image\na.png,b.png\n"))
    with pytest.raises(DataError, match="2 columns that may be image: image, image"):
        twice.column("image")


def test_a_name_of_a_mac_is_the_name_of_everybody_else(tmp_path):
    decomposed = "Me\u0301lanome"
    table = read_table(_written(tmp_path, f"image,{decomposed}\n{decomposed}.png,1\n"))
    assert table.header == ("image", "M\u00e9lanome")
    assert table.column("image").tolist() == ["M\u00e9lanome.png"]


def test_a_column_of_paths_alone_needs_no_delimiter(tmp_path):
    paths = ["set1/p 1.png", "set1/p 2.png"]
    table = read_table(_written(tmp_path, "path\n" + "\n".join(paths)))
    assert table.column("path").tolist() == paths


def test_a_formula_that_keeps_zeros_is_its_text(tmp_path):
    table = read_table(_written(tmp_path, 'image,id\na.png,"=""0012"""\nb.png,=x\n'))
    assert table.column("id").tolist() == ["0012", "=x"]


def test_a_header_that_is_repeated_is_no_row(tmp_path):
    table = read_table(_written(tmp_path, "image,id\na.png,1\nimage,id\nb.png,2\n"))
    assert table.column("id").tolist() == ["1", "2"]
    assert table.remarks == ("patients.csv repeats its header on line 3: left out, as 1 such row",)


# --- what is refused ------------------------------------------------------------------------------


def _excel():
    """The first bytes of any .xlsx: a zip."""
    return b"PK\x03\x04" + bytes(40)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not readable as a CSV: it is empty"),
        (b"\xef\xbb\xbf\r\n,,\r\n", "is not readable as a CSV: it is empty"),
        (_excel(), "not a CSV but a spreadsheet .*Save As, CSV UTF-8.*drops leading zeros"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "not a CSV but a spreadsheet"),
        (b"PAR1abc", "not a CSV but a spreadsheet or another binary file"),
        (b"image\na\0b.png\n", "holds NUL characters"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull` brings it"),
        (b"\n<!DOCTYPE html>\n<html>", "it is a web page, .*download it again"),
        ("image\na.png\n".encode("utf-16") + b"\x00", "not readable as a CSV in utf-16"),
        (
            "image,patient_id\na.png,Smith, John\n",
            r"line 2 has 3 cells, the header names 2 columns \(image, patient_id\)",
        ),
        ('image,patient_id\na.png,"p1\nb.png,p2\n', "line 3: unexpected end of data"),
        ('image,patient_id\na.png,"p"1"\n', "line 2: .*expected after"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_do(tmp_path, content, text):
    with pytest.raises(DataError, match=rf"(?s)patients\.csv.*{text}"):
        read_table(_written(tmp_path, content))


@pytest.mark.parametrize(
    "text", ["image id\na.png 1\n", '"image,id"\n"a.png,1"\n', '[{"image": 1}]']
)
def test_a_header_of_one_cell_says_how_cells_are_divided(tmp_path, text):
    with pytest.raises(DataError, match="cells are divided by comma, semicolon, tab or bar"):
        read_table(_written(tmp_path, text)).column("id")


def test_a_spreadsheet_is_refused_by_its_name_too(tmp_path):
    with pytest.raises(DataError, match="not a CSV but a spreadsheet"):
        read_table(_written(tmp_path, "image,patient_id\n", "patients.ods"))
    with pytest.raises(DataError, match="There is no"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_table(tmp_path)


def test_it_reads_the_table_of_nih_as_pandas_does(tmp_path):
    text = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,OriginalImage[Width,Height],\n"
        "00000001_000.png,Cardiomegaly,0,1,2682,2749,\n"
        "00000002_000.png,No Finding,0,2,2500,2048,\n"
    )
    table = read_table(_written(tmp_path, text))
    oracle = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    named = [name for name in oracle if not name.startswith("Unnamed")]
    assert _cells(table) == [oracle[name].tolist() for name in named]
