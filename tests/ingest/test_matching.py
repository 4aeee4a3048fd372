"""Which file a row means: paths, base names, ids without ending, and what is not guessed."""

import sys

import pytest

from equipoise.ingest.matching import match, plain_path

FILES = ["part_1/ISIC_1.jpg", "part_1/ISIC_2.jpg", "part_2/ISIC_3.jpg"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("part_1/ISIC_1.jpg", "part_1/ISIC_1.jpg"),
        ("part_1/ISIC_1", "part_1/ISIC_1.jpg"),
        ("ISIC_1.jpg", "part_1/ISIC_1.jpg"),
        ("ISIC_1", "part_1/ISIC_1.jpg"),
        ("isic_1.JPG", "part_1/ISIC_1.jpg"),
        ("ISIC_1.png", "part_1/ISIC_1.jpg"),
        ("HAM10000/part_2/ISIC_3.jpg", "part_2/ISIC_3.jpg"),
    ],
)
def test_a_name_that_fits_one_file_means_it(name, path):
    found = match([name], FILES)
    assert found.path_of == {name: path}
    assert found.loose == ([] if name == path else [name])
    assert found.absent == []
    assert found.unnamed == [file for file in FILES if file != path]


@pytest.mark.parametrize("name", ["part_2/ISIC_1.jpg", "ISIC_4", "ISIC", "SIC_1", "other/ISIC_3"])
def test_a_name_in_another_folder_or_of_another_file_has_none(name):
    found = match([name], FILES)
    assert (found.path_of, found.absent, found.unnamed) == ({}, [name], FILES)


def test_a_name_that_fits_several_files_is_not_guessed():
    found = match(["1"], ["a/1.png", "b/1.png"])
    assert (found.path_of, found.ambiguous) == ({}, {"1": ["a/1.png", "b/1.png"]})
    assert match(["a/1"], ["a/1.png", "b/1.png"]).path_of == {"a/1": "a/1.png"}
    assert match(["1.png"], ["a/1.png", "a/1.jpg"]).path_of == {"1.png": "a/1.png"}
    assert match(["x/a/1"], ["a/1.png", "1.png"]).path_of == {"x/a/1": "a/1.png"}


def test_a_file_that_a_path_names_is_no_other_rows():
    found = match(["1.png", "b/1.png"], ["1.png"])
    assert (found.path_of, found.absent) == ({"1.png": "1.png"}, ["b/1.png"])


def test_a_name_as_in_an_address_means_its_file():
    files = ["set/scan 1 ä.png", "set/100%.png"]
    names = ["set/scan%201%20%C3%A4.png", "100%"]
    assert match(names, files).path_of == dict(zip(names, files))


def test_names_are_compared_with_slashes_and_in_one_normal_form():
    assert plain_path(" .\\scans//a.png ") == "scans/a.png"
    file = "M\u00e9lanome/1.png"
    typed = plain_path("Me\u0301lanome/1.png")
    assert match([typed], [file]).path_of == {typed: file}
    assert match([plain_path(file)], ["Me\u0301lanome/1.png"]).unnamed == []


def calls_to_match(count: int) -> int:
    """How many functions are called to find as many files of one base name."""
    files = [f"train/patient{number:05d}/study1/view1_frontal.jpg" for number in range(count)]
    names = [f"CheXpert-v1.0-small/{file}" for file in files]
    calls = 0

    def note(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        found = match(names, files)
    finally:
        sys.setprofile(None)
    assert list(found.path_of.values()) == files
    return calls


def test_many_files_of_one_name_take_no_square_of_their_number():
    assert calls_to_match(2_000) < 11 * calls_to_match(200), (
        "all pairs would take 100 times as many"
    )
