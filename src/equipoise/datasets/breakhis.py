"""BreakHis (Spanhol 2016): malignant against benign breast tumours, 40X to 400X.

Names look like `SOB_M_DC-14-13412-40-001.png`: biopsy, class, tumour type, year, slide, magnification, number. Same
digits in two slide ids (22549AB, 22549CD) very likely mean one patient, which the authors never state; slide 13412 is
filed under two tumour types with the same pictures.
"""

import re
from pathlib import PurePosixPath

from equipoise.datasets.base import Card, Parsed, Unrecognised

CARD = Card(
    title="Breast Cancer Histopathological Database (BreakHis)",
    source="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    licence="CC BY 4.0 by secondary sources; the official page asks for research use",
    citation="Spanhol, Oliveira, Petitjean, Heutte 2016, IEEE TBME 63(7):1455-1462, doi:10.1109/TBME.2015.2496264",
    classes=("benign", "malignant"),
    positive_class="malignant",
    readings={
        "accession": "year and digits of the slide id (conservative: 70 patients)",
        "dedup": "year and slide id; the slide filed under two types is one (81)",
        "slide": "tumour type, year and slide id, as the folders are (82)",
    },
    expected_images={"benign": 2480, "malignant": 5429},
)

_NAME = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)-(?P<year>\d\d)-(?P<digits>\d+)(?P<block>[A-Z]*)"
    r"-(?P<magnification>40|100|200|400)-(?P<number>\d+)\.png",
    re.I,
)


def parse(path: PurePosixPath) -> Parsed:
    """Read class, patient, tumour type and magnification from the file name; folders do not matter.

    >>> parse(PurePosixPath("SOB_B_A-14-22549AB-40-001.png")).patients
    {'accession': '14-22549', 'dedup': '14-22549AB', 'slide': 'A-14-22549AB'}
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise Unrecognised("expected a name like SOB_M_DC-14-13412-40-001.png")
    accession = f"{match['year']}-{match['digits']}"
    slide = f"{accession}{match['block'].upper()}"
    return Parsed(
        class_name="benign" if match["kind"].upper() == "B" else "malignant",
        patients={"accession": accession, "dedup": slide, "slide": f"{match['subtype'].upper()}-{slide}"},
        columns={"subtype": match["subtype"].upper(), "magnification": f"{match['magnification']}X"},
    )
