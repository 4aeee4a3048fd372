"""What DICOM headers add to a dataset: whose image it is, of which side and view, and how it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from equipoise.core import dicom, images, parallel
from equipoise.core.config import Ingest
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

#: Types of fields that are no words or numbers to compare images by: pixels, other bytes, lists of fields.
_NO_TEXT = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN", "OB or OW", "US or OW"})
#: Types of fields that lead to a person: names, free text, and numbers that stand for one study or picture.
_NAMING_TYPES = frozenset({"PN", "LT", "ST", "UT", "UI"})
_NAMING = frozenset(
    {
        "AccessionNumber",
        "AdmissionID",
        "IssuerOfPatientID",
        "MedicalRecordLocator",
        "OtherPatientIDs",
        "PatientAddress",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientComments",
        "PatientID",
        "PatientTelephoneNumbers",
        "StudyID",
    }
)


@dataclass(frozen=True)
class _Headers:
    """Reads the files of a dataset, and the headers of those that are DICOM.

    Attributes:
        raw: Folder of the originals.
        dataset: Knows everything that is not in the headers.
        patients: PatientID -> id of the patient, "" where it names none; empty where the headers are
            not asked who the patient is.
        further: Fields that become columns under their own names.
    """

    raw: Path
    dataset: Dataset
    patients: Mapping[str, str]
    further: Sequence[str] = ()

    def parse(self, path: PurePosixPath) -> Parsed:
        """What the dataset says of an image, and what its header adds; a column the dataset has stays.

        Raises:
            Unrecognised: When the header names no patient, and those of other files do.
            ValueError: When it is no picture at all.
        """
        parsed = self.dataset.parse(path)
        file = self.raw / path
        wanted = [*_FIELDS, *self.further]
        fields = dict.fromkeys(wanted, "")
        if dicom.is_dicom_file(file):
            fields = dicom.read_fields(file, wanted)
        columns = _columns(fields)
        for name in self.further:
            columns[name] = fields[name]
        columns.update(parsed.columns)
        if not self.patients:
            return replace(parsed, columns=columns)
        patient = self.patients.get(fields["PatientID"], "")
        if not patient:
            images.open_picture(file)  # what is no picture at all is said first
            raise Unrecognised(
                "no DICOM header names its patient (PatientID), and others of this study do; "
                "ingest.table can name all of them"
            )
        return replace(parsed, patients={READING: patient}, columns=columns)


def add_headers(dataset: Dataset, raw: Path, paths: Sequence[str], settings: Ingest) -> Dataset:
    """The dataset with columns laterality, view and acquisition; unchanged where no file is DICOM.

    Where nothing else names patients, PatientID does, unless no header has one.

    Args:
        dataset: As it is without headers.
        raw: Folder of the originals.
        paths: Of its images, inside the folder.
        settings: The `ingest` section: `columns` may name fields, `aliases` is for PatientID as for the
            ids of a table.

    Raises:
        ConfigError: When an alias names no PatientID.
        DataError: When two of them probably mean one patient, as in `spellings.patient_ids`.
    """
    files: list[Path] = []
    if dicom.SUFFIXES & dataset.suffixes:
        files = [file for file in map(raw.joinpath, paths) if dicom.is_dicom_file(file)]
    if not files:
        return dataset
    card = dataset.card
    patients: dict[str, str] = {}
    if not card.patient_ids:
        patients = _read_patients(files, settings.aliases)
    if patients:
        readings = {READING: "PatientID of the DICOM header"}
        card = replace(card, readings=readings, patient_ids=True)
    further = [name for name in settings.columns if not obstacle(name)]
    headers = _Headers(raw, dataset, patients, further)
    return replace(dataset, card=card, parse=headers.parse)


def obstacle(name: str) -> str:
    """Why a column of `ingest.columns` is not read from DICOM headers; empty where it is."""
    value_type = dicom.value_type(name) if dicom.is_installed() else ""
    if not value_type:
        return "no field of DICOM headers"
    if value_type in _NAMING_TYPES or name in _NAMING:
        return "a field of DICOM headers that may name a person"
    if value_type in _NO_TEXT:
        return f"a field of DICOM headers that is neither a text nor a number ({value_type})"
    return ""


def why_missing(name: str) -> str:
    """Why no image has a column of `ingest.columns` from its header."""
    return obstacle(name) or "a field of DICOM headers, and no file is DICOM"


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
