"""What a dataset file says about itself and about each of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class Unrecognised(ValueError):
    """A file name that the dataset's grammar does not allow; the text says why, and the file is quarantined."""


@dataclass(frozen=True)
class Card:
    """Where a dataset comes from and what to expect of it.

    Attributes:
        title: One line.
        source: Address of the official copy.
        licence: As stated by the source.
        citation: Paper to cite.
        classes: Class names in the order of their labels.
        positive_class: The disease: sensitivity speaks of this class.
        readings: Ways to read who the patient is, the default first, each with what it means.
        expected_images: Images per class of the complete dataset; empty when there is no fixed number.
    """

    title: str
    source: str
    licence: str
    citation: str
    classes: tuple[str, ...]
    positive_class: str
    readings: Mapping[str, str]
    expected_images: Mapping[str, int] = field(default_factory=dict)

    def completeness(self, counts: Mapping[str, int]) -> str:
        """Say whether the images found are all of the dataset, part of it, or something else."""
        if not self.expected_images:
            return "the dataset has no fixed number of images"
        expected = ", ".join(f"{name} {count:,}" for name, count in self.expected_images.items())
        if all(counts[name] == count for name, count in self.expected_images.items()):
            return f"complete: {expected}"
        if all(counts[name] <= count for name, count in self.expected_images.items()):
            return f"partial: the complete dataset has {expected}"
        return f"different: the published dataset has {expected}"


@dataclass(frozen=True)
class Parsed:
    """What the path of one image says.

    Attributes:
        class_name: One of the card's classes.
        patients: Patient id by reading, every reading of the card.
        columns: Dataset columns, for example subtype, magnification, official_split.
    """

    class_name: str
    patients: Mapping[str, str]
    columns: Mapping[str, str] = field(default_factory=dict)
