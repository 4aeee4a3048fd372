"""Class names in any script: no box, no raw warning, and no name that is lost."""

import re
import warnings

import numpy as np
import pytest
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font

from equipoise.compare import gradcam
from equipoise.compare.lettering import lettering
from equipoise.compare.report import figures

NAMES = ("正常", "肺炎", "ปอดบวม", "निमोनिया", "التهاب رئوي", "Пневмония", "대장염", "😀")
FILM = np.zeros((8, 8, 3), np.uint8)


def _has(font: FT2Font, character: str) -> bool:
    return font.get_char_index(ord(character)) > 0


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _rows(classes):
    """Images per class, as the page shows them."""
    return [
        {
            "stage": stage,
            "class_name": name,
            "images": 5,
            "patients": 3,
            "image_share": 0.5,
            "imbalance_ratio": 1.0,
        }
        for stage in ("all", "train")
        for name in classes
    ]


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_the_page_keep_the_letters_and_warn_of_nothing(name, no_warning):
    drawn = figures.distribution(_rows([name, "clear"]), [name, "clear"], backbone="vgg16")
    (legend,) = re.findall(f"<text [^>]*>{name}</text>", drawn.svg)
    assert "Last Resort" not in legend
    assert "sans-serif" in legend


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_pixels_has_no_box(name, no_warning, tmp_path):
    drawn = gradcam.figure(FILM, np.zeros((8, 8), np.float32), f"decision: {name}")
    drawn.savefig(tmp_path / "a.png")
    letters = lettering(f"decision: {name}")
    fonts = [get_font(findfont(family)) for family in letters.families]
    for character in letters.text.replace("\n", ""):
        assert any(_has(font, character) for font in fonts), character


def test_another_font_lends_its_letters():
    usual = get_font(findfont("DejaVu Sans"))
    (other,) = [
        font
        for font in fontManager.ttflist
        if font.name == "STIXGeneral" and font.style == "normal" and font.weight in (400, "normal")
    ][:1]
    only_there = [
        code for code in get_font(other.fname).get_charmap() if not _has(usual, chr(code))
    ]
    text = "class " + chr(min(only_there))
    assert lettering(text, fonts=[other]) == (text, ["DejaVu Sans", "STIXGeneral"])


def test_without_a_font_the_number_of_a_character_stands_for_it_and_that_is_said():
    text, families = lettering("肺\u2060炎", fonts=[])
    assert families == ["DejaVu Sans"]
    first, second = text.split("\n")
    assert first.replace("\u2060", "") == "<U+80BA><U+708E>"
    assert second == "<U+...>: a character that no font of this machine has"
