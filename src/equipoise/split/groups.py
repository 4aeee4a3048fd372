"""How many images of a patient, a picture or a class are in each part, in numbers and in words."""

from __future__ import annotations

import numpy as np
import pandas as pd


def count_images(groups: pd.Categorical, kinds: pd.Categorical) -> np.ndarray:
    """Count the images of each group by kind, int (num_groups, num_kinds)."""
    num_groups = len(groups.categories)
    num_kinds = len(kinds.categories)
    pairs = np.ravel_multi_index((groups.codes, kinds.codes), (num_groups, num_kinds))
    counts = np.bincount(pairs, minlength=num_groups * num_kinds)
    return counts.reshape(num_groups, num_kinds)


def spread_groups(groups: pd.Categorical, parts: pd.Categorical) -> dict[str, str]:
    """Find the groups with images in more than one part.

    Returns:
        How many images are where, in words ("in train (3 images) and test (1 images)"), by the
        group's name.
    """
    images = count_images(groups, parts)
    num_parts = np.count_nonzero(images, axis=1)
    spread = {}
    for group in np.flatnonzero(num_parts > 1):
        places = []
        for part, count in zip(parts.categories, images[group]):
            if count:
                places.append(f"{part} ({count} images)")
        name = groups.categories[group]
        spread[name] = "in " + " and ".join(places)
    return spread


def short_digest(picture: str) -> str:
    """The beginning of a picture's name, which is a digest."""
    return f"{picture[:12]}..."
