"""Who is joined by a shared picture, without any file."""

import numpy as np
import pandas as pd
import pytest

from equipoise.ingest import copies
from equipoise.ingest.duplicates import SIDE


def joined(pictures: str, patients: str) -> str:
    names = copies.join_patients_who_share(np.array(list(pictures)), pd.Series(list(patients)))
    return "".join(names)


def test_patients_without_a_shared_picture_stay_as_they_are():
    assert joined("xyz", "bab") == "bab"


def test_patients_who_share_a_picture_get_the_smallest_name():
    assert joined("xyxz", "cbad") == "abad"


def test_patients_are_joined_through_others():
    assert joined("xxyyz", "dcbda") == "bbbba"


def test_pictures_of_the_same_pixels_have_one_name():
    blank = np.zeros((4, SIDE, SIDE), np.uint8)  # in no pair of near copies
    names = copies.join_near_copies(pd.Series(["q", "p", "q", "r"]), blank).of_row
    assert names.tolist() == ["q", "p", "q", "r"]


def test_near_copies_are_named_after_the_smallest_digest():
    rng = np.random.default_rng(0)
    picture, other = rng.integers(0, 256, (2, SIDE, SIDE)).astype(np.uint8)
    nearly = picture.copy()
    nearly[5, 5] += 1
    pictures = copies.join_near_copies(
        pd.Series(["q", "p", "r"]), np.stack([picture, nearly, other])
    )
    assert pictures.of_row.tolist() == ["p", "p", "r"]
    assert pictures.alike == 0


@pytest.mark.parametrize(("copied", "is_joined"), [(10, True), (11, False)])
def test_a_group_that_holds_too_much_of_a_study_is_not_joined(copied, is_joined):
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 250, (100, SIDE, SIDE)).astype(np.uint8)
    thumbnails[:copied] = thumbnails[0]  # the same thumbnail of other pixels
    digests = pd.Series([f"{number:03d}" for number in range(100)])
    pictures = copies.join_near_copies(digests, thumbnails)
    names_of_group = set(pictures.of_row[:copied])
    assert len(names_of_group) == (1 if is_joined else copied)
    assert pictures.alike == (0 if is_joined else copied)
    assert pictures.of_row[copied:].tolist() == digests[copied:].tolist()
