"""What DICOM headers add to a dataset: whose image it is, of which side and view, and how it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from equipoise.core import dicom
from equipoise.ingest.datasets.base import Dataset, Parsed, Unrecognised

#: Column of the manifest -> the DICOM keywords it is read from.
_FIRST_OF = {
    "laterality": ("ImageLaterality", "FrameLaterality", "Laterality"),
    "view": ("ViewPosition",),
}
#: The column `acquisition` is these together: images of one device may look alike for no other reason.
_ACQUISITION = ("Modality", "Manufacturer", "ManufacturerModelName")
_FIELDS = ("PatientID", *_FIRST_OF["laterality"], *_FIRST_OF["view"], *_ACQUISITION)

READING = "patient"


@dataclass(frozen=True)
class _Headers:
    """Reads the files of a dataset, and the headers of those that are DICOM.

    Attributes:
        raw: Folder of the originals.
        dataset: Knows everything that is not in the headers.
        name_patients: Whether the headers say who the patient is, because nothing else does.
    """

    raw: Path
    dataset: Dataset
    name_patients: bool

    def parse(self, path: PurePosixPath) -> Parsed:
        """What the dataset says of an image, and what its header adds; a column the dataset has stays."""
        parsed = self.dataset.parse(path)
        file = self.raw / path
        fields = dict.fromkeys(_FIELDS, "")
        if dicom.is_dicom_file(file):
            fields = dicom.read_fields(file, _FIELDS)
        columns = _columns(fields)
        columns.update(parsed.columns)
        if not self.name_patients:
            return replace(parsed, columns=columns)
        if not fields["PatientID"]:
            raise Unrecognised(
                "no DICOM header names its patient (PatientID), and others of this study do; "
                "ingest.table can name all of them"
            )
        return replace(parsed, patients={READING: fields["PatientID"]}, columns=columns)


def add_headers(dataset: Dataset, raw: Path, paths: Sequence[str]) -> Dataset:
    """The dataset with columns laterality, view and acquisition; unchanged where no file is DICOM.

    Where nothing else names patients, PatientID does, unless no header has one.

    Args:
        dataset: As it is without headers.
        raw: Folder of the originals.
        paths: Of its images, inside the folder.
    """
    files: list[Path] = []
    if dicom.SUFFIXES & dataset.suffixes:
        files = [raw / path for path in paths if dicom.is_dicom_file(raw / path)]
    if not files:
        return dataset
    card = dataset.card
    name_patients = not card.patient_ids and any(map(_names_a_patient, files))
    if name_patients:
        readings = {READING: "PatientID of the DICOM header"}
        card = replace(card, readings=readings, patient_ids=True)
    headers = _Headers(raw, dataset, name_patients)
    return replace(dataset, card=card, parse=headers.parse)


def _names_a_patient(file: Path) -> bool:
    try:
        return bool(dicom.read_fields(file, ["PatientID"])["PatientID"])
    except (ValueError, OSError):
        return False


def _columns(fields: Mapping[str, str]) -> dict[str, str]:
    columns = {}
    for name, keywords in _FIRST_OF.items():
        given = [fields[keyword] for keyword in keywords if fields[keyword]]
        columns[name] = given[0] if given else ""
    columns["acquisition"] = " ".join(fields[name] for name in _ACQUISITION if fields[name])
    return columns
