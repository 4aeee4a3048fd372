"""Kermany 2018 chest X-rays of children: pneumonia (bacterial or viral) against normal.

Layout: `{train,val,test}/{NORMAL,PNEUMONIA}/NAME.jpeg`, at any depth (Kaggle nests it once more), in
any letter case. Kaggle's `val` was moved out of `train` (16 files), so it counts as train. A later
release calls the files `BACTERIA-1008087-0001.jpeg`: disease, patient, number of the image. Files that
were saved as something else (.png) keep what their names say.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from equipoise.ingest import layouts, spellings
from equipoise.ingest.datasets.base import Archive, Card, Parsed, Task, Unrecognised

CARD = Card(
    title="Chest X-ray images (pneumonia), paediatric, Guangzhou",
    source="https://doi.org/10.17632/rscbjbr9sj.2",
    licence="CC BY 4.0",
    citation="Kermany, Zhang, Goldbaum et al. 2018, Cell 172(5):1122-1131, doi:10.1016/j.cell.2018.02.010",
    tasks={
        "binary": Task(
            classes=("normal", "pneumonia"),
            positive_class="pneumonia",
            grouping={"normal": "normal", "bacteria": "pneumonia", "virus": "pneumonia"},
            expected_images={"": {"normal": 1583, "pneumonia": 4273}},
        ),
        "subtypes": Task(
            classes=("normal", "bacteria", "virus"),
            positive_class="bacteria",
            expected_images={"": {"normal": 1583, "bacteria": 2780, "virus": 1493}},
        ),
    },
    readings={
        "person": "the number in the name, whatever subtype or folder (conservative: 170 are in train and test)",
        "subtype_person": "subtype and number: numbering looks per subtype, and then train and test share nobody",
    },
    official_reading="subtype_person",
    archive=Archive(
        address="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        bytes=1_235_512_464,
        sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
    ),
)

_PNEUMONIA = re.compile(r"person(?P<person>\d+)_(?P<subtype>bacteria|virus)_\d+\.\w+$", re.I)
_NORMAL = re.compile(r"(?P<series>NORMAL2-)?IM-(?P<study>\d+)-\d+(-\d+)?\.\w+$", re.I)
_LATER_RELEASE = re.compile(r"(?P<subtype>NORMAL|BACTERIA|VIRUS)-(?P<patient>\d+)-\d+\.\w+$", re.I)


@dataclass(frozen=True)
class _Name:
    """What a file name says: the subtype, and the patient in both readings."""

    subtype: str
    person: str
    subtype_person: str


def parse(path: PurePosixPath) -> Parsed:
    """Read class, patient, subtype and published side from the path inside the raw folder.

    >>> parse(PurePosixPath("train/PNEUMONIA/person7_virus_12.jpeg")).patients["person"]
    'person7'
    """
    side = layouts.side_of_one(path.parts[-3]) if len(path.parts) > 2 else ""
    if not side:
        raise Unrecognised("expected .../{train,val,test}/{NORMAL,PNEUMONIA}/NAME.jpeg")
    name = _read_name(path.name)
    folder = "normal" if name and name.subtype == "normal" else "pneumonia"
    if name is None or spellings.class_key(path.parts[-2]) != folder:
        raise Unrecognised("the name is not of Kermany's grammar for its folder")
    return Parsed(
        class_name=name.subtype,
        patients={"person": name.person, "subtype_person": name.subtype_person},
        columns={"official_split": side, "subtype": name.subtype},
    )


def _read_name(name: str) -> _Name | None:
    """Read a file name; None where it is not of Kermany's grammar."""
    if match := _PNEUMONIA.fullmatch(name):
        person = f"person{int(match['person'])}"
        subtype = match["subtype"].lower()
        return _Name(subtype, person, f"{subtype}_{person}")
    if match := _NORMAL.fullmatch(name):
        # Whether IM-k and NORMAL2-IM-k are one child is unknown: one under `person`, two under
        # `subtype_person`.
        person = f"IM-{match['study']}"
        return _Name("normal", person, f"{match['series'] or ''}{person}")
    if match := _LATER_RELEASE.fullmatch(name):
        # A patient id, no count within a subtype: nothing has to be guessed.
        return _Name(match["subtype"].lower(), match["patient"], match["patient"])
    return None
