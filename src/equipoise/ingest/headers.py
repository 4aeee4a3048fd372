"""What DICOM headers add to a dataset: whose image it is, of which side and view, and how it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from equipoise.core import dicom, parallel
from equipoise.ingest import spellings
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
        patients: PatientID -> id of the patient, "" where it names none; empty where the headers are
            not asked who the patient is.
    """

    raw: Path
    dataset: Dataset
    patients: Mapping[str, str]

    def parse(self, path: PurePosixPath) -> Parsed:
        """What the dataset says of an image, and what its header adds; a column the dataset has stays."""
        parsed = self.dataset.parse(path)
        file = self.raw / path
        fields = dict.fromkeys(_FIELDS, "")
        if dicom.is_dicom_file(file):
            fields = dicom.read_fields(file, _FIELDS)
        columns = _columns(fields)
        columns.update(parsed.columns)
        if not self.patients:
            return replace(parsed, columns=columns)
        patient = self.patients.get(fields["PatientID"], "")
        if not patient:
            raise Unrecognised(
                "no DICOM header names its patient (PatientID), and others of this study do; "
                "ingest.table can name all of them"
            )
        return replace(parsed, patients={READING: patient}, columns=columns)


def add_headers(
    dataset: Dataset, raw: Path, paths: Sequence[str], aliases: Mapping[str, str]
) -> Dataset:
    """The dataset with columns laterality, view and acquisition; unchanged where no file is DICOM.

    Where nothing else names patients, PatientID does, unless no header has one.

    Args:
        dataset: As it is without headers.
        raw: Folder of the originals.
        paths: Of its images, inside the folder.
        aliases: The setting `ingest.aliases`, for PatientID as for the ids of a table.

    Raises:
        ConfigError: When an alias names no PatientID.
        DataError: When two of them probably mean one patient, as in `spellings.patient_ids`.
    """
    files: list[Path] = []
    if dicom.SUFFIXES & dataset.suffixes:
        files = [raw / path for path in paths if dicom.is_dicom_file(raw / path)]
    if not files:
        return dataset
    card = dataset.card
    patients: dict[str, str] = {}
    if not card.patient_ids:
        patients = _read_patients(files, aliases)
    if patients:
        readings = {READING: "PatientID of the DICOM header"}
        card = replace(card, readings=readings, patient_ids=True)
    headers = _Headers(raw, dataset, patients)
    return replace(dataset, card=card, parse=headers.parse)


def _read_patients(files: Sequence[Path], aliases: Mapping[str, str]) -> dict[str, str]:
    """PatientID -> id of the patient, by the rules for the ids of a table; empty where none is named."""
    names = set(parallel.in_threads(_patient_of, files))
    cells = pd.Series(sorted(names), dtype=object)
    ids = spellings.patient_ids(cells, aliases, "PatientID of the DICOM headers")
    return dict(zip(cells, ids)) if ids.any() else {}


def _patient_of(file: Path) -> str:
    """PatientID of a file; empty also where it cannot be read, which is said when its picture is."""
    try:
        return dicom.read_fields(file, ["PatientID"])["PatientID"]
    except (ValueError, OSError):
        return ""


def _columns(fields: Mapping[str, str]) -> dict[str, str]:
    columns = {}
    for name, keywords in _FIRST_OF.items():
        given = [fields[keyword] for keyword in keywords if fields[keyword]]
        columns[name] = given[0] if given else ""
    columns["acquisition"] = " ".join(fields[name] for name in _ACQUISITION if fields[name])
    return columns
