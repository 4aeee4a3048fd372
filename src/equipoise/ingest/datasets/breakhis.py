"""BreakHis (Spanhol 2016): malignant against benign breast tumours, 40X to 400X.

Names look like `SOB_M_DC-14-13412-40-001.png`: biopsy, class, tumour type, year, slide,
magnification, number. Same digits in two slide ids (22549AB, 22549CD) very likely mean one patient,
which the authors never state. Slide 13412 is filed under two tumour types with the same pictures.
The five published folds are used when their files (`dsfold1.txt` ... `dsfold5.txt`, rows
`NAME.png|100|1|train`) lie anywhere in the raw folder.
"""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from equipoise.core import images
from equipoise.core.config import Ingest
from equipoise.core.errors import DataError
from equipoise.ingest.datasets.base import Archive, Card, Dataset, Parsed, Task, Unrecognised

_SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
_BENIGN = ("A", "F", "PT", "TA")
_IMAGES = {"A": 444, "F": 1014, "PT": 453, "TA": 569, "DC": 3451, "LC": 626, "MC": 792, "PC": 560}

CARD = Card(
    title="Breast Cancer Histopathological Database (BreakHis)",
    source="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    licence="CC BY 4.0 by secondary sources; the official page asks for research use",
    citation="Spanhol, Oliveira, Petitjean, Heutte 2016, IEEE TBME 63(7):1455-1462, doi:10.1109/TBME.2015.2496264",
    tasks={
        "binary": Task(
            classes=("benign", "malignant"),
            positive_class="malignant",
            grouping={
                name: "benign" if code in _BENIGN else "malignant"
                for code, name in _SUBTYPES.items()
            },
            expected_images={
                "": {"benign": 2480, "malignant": 5429},
                "magnification=40X": {"benign": 625, "malignant": 1370},
                "magnification=100X": {"benign": 644, "malignant": 1437},
                "magnification=200X": {"benign": 623, "malignant": 1390},
                "magnification=400X": {"benign": 588, "malignant": 1232},
            },
        ),
        "subtypes": Task(
            classes=tuple(_SUBTYPES.values()),
            positive_class="ductal_carcinoma",
            expected_images={"": {name: _IMAGES[code] for code, name in _SUBTYPES.items()}},
        ),
    },
    readings={
        "accession": "year and digits of the slide id (conservative: 70 patients)",
        "dedup": "year and slide id; the slide filed under two types is one (81)",
        "slide": "tumour type, year and slide id, as the folders are (82)",
    },
    archive=Archive("http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"),
)

_NAME = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)-(?P<year>\d\d)-(?P<digits>\d+)(?P<block>[A-Z]*)"
    r"-(?P<magnification>40|100|200|400)-(?P<number>\d+)\.png",
    re.I,
)

_FOLD_FILE = re.compile(r"dsfold([1-5])\.txt")


def parse(path: PurePosixPath) -> Parsed:
    """Read class, patient, tumour type and magnification from the file name; folders do not matter.

    >>> parse(PurePosixPath("SOB_B_A-14-22549AB-40-001.png")).patients
    {'accession': '14-22549', 'dedup': '14-22549AB', 'slide': 'A-14-22549AB'}
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise Unrecognised("expected a name like SOB_M_DC-14-13412-40-001.png")
    subtype = match["subtype"].upper()
    if (subtype in _BENIGN) != (match["kind"].upper() == "B"):
        raise Unrecognised("class letter and tumour type of the name contradict each other")
    accession = f"{match['year']}-{match['digits']}"
    slide = f"{accession}{match['block'].upper()}"
    return Parsed(
        class_name=_SUBTYPES[subtype],
        patients={"accession": accession, "dedup": slide, "slide": f"{subtype}-{slide}"},
        columns={"subtype": subtype, "magnification": f"{match['magnification']}X"},
    )


def open_folder(raw: Path, settings: Ingest) -> Dataset:
    """The dataset on a folder, with the published sides where the fold files lie in it."""
    side_by_fold = {}
    for path in sorted(images.files_below(raw)):
        if match := _FOLD_FILE.fullmatch(PurePosixPath(path).name):
            side_by_fold[int(match[1])] = _read_fold(raw / path)

    def parse_with_sides(path: PurePosixPath) -> Parsed:
        parsed = parse(path)
        columns = dict(parsed.columns)
        for fold, side_of in side_by_fold.items():
            columns[f"official_split_{fold}"] = side_of.get(path.name, "")
        return replace(parsed, columns=columns)

    return Dataset(CARD, parse_with_sides)


def _read_fold(path: Path) -> dict[str, str]:
    """File name -> train or test, from one fold file."""
    side_of = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.strip().split("|")
        if len(cells) != 4 or cells[3] not in ("train", "test"):
            raise DataError(
                f"{path}, line {number} is not of the form NAME.png|MAGNIFICATION|FOLD|train or test."
            )
        side_of[cells[0]] = cells[3]
    return side_of
