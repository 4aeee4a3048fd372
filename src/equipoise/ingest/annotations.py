"""What a table says of images: class, patient, published side and further columns (`ingest.table`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from equipoise.core import dicom
from equipoise.core.config import PATIENT_COLUMN, ImageTable, Ingest
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.core.text import counted, examples, first_of, in_words
from equipoise.ingest import headers, layouts, spellings
from equipoise.ingest.datasets.base import Unrecognised
from equipoise.ingest.matching import Match, match, plain_path
from equipoise.ingest.spellings import class_key
from equipoise.ingest.tables import Table, read_table

#: Names that columns of the manifest, or of what is made from it, have already.
_TAKEN = {*Manifest.COLUMNS, "pixels", "patient", "image", "official_split", "part"}
#: More different values than this are no classes: the column holds ages, ids or sentences.
_CLASSES_MAX = 100
#: Images and values that a sentence names.
_NAMED = 3

_YES = frozenset(
    {"1", "true", "yes", "y", "x", "t", "+", "✓", "wahr", "ja", "vrai", "oui", "sí", "si"}
)
_NO = frozenset({"0", "false", "no", "n", "f", "falsch", "nein", "faux", "non"})
#: `['pneumonia']`, and lists of any length.
_LIST_OF_ONE = re.compile(r"""^\[(['"]?)([^,]*)\1\]$""")
_LIST = re.compile(r"\[.*,.*\]")
#: `1.0` and `0,00` are 1 and 0.
_WHOLE = re.compile(r"^([01])[.,]0+$")


@dataclass(frozen=True)
class Annotation:
    """What a table says of one image; text is empty where it says nothing.

    Attributes:
        class_name: Its class.
        patient: Who the patient is.
        side: train or test, as published.
        columns: The further columns that are kept.
    """

    class_name: str
    patient: str
    side: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Annotations:
    """What a table says of the files there are.

    Attributes:
        table: Which columns were read.
        classes: Names of the classes, sorted; empty where the table has no column of them.
        of_path: Path of a file -> what its row says; files without a row are not there.
        remarks: Sentences about what was found on the way.
        guesses: Those about how the file was read; an error that may come of it tells them.
    """

    table: ImageTable
    classes: tuple[str, ...]
    of_path: Mapping[str, Annotation]
    remarks: tuple[str, ...]
    guesses: tuple[str, ...]

    def of(self, path: str) -> Annotation:
        """What the table says of one file.

        Raises:
            Unrecognised: When it has no row for it, or its row lacks the label or the patient.
        """
        annotation = self.of_path.get(path)
        if annotation is None:
            raise Unrecognised("ingest.table has no row for this file")
        if self.table.label and not annotation.class_name:
            raise Unrecognised(f"ingest.table gives this file no {' or '.join(self.table.label)}")
        if self.table.patient is not None and not annotation.patient:
            raise Unrecognised(f"ingest.table gives this file no {self.table.patient}")
        return annotation


def read_annotations(raw: Path, settings: Ingest, paths: Sequence[str]) -> Annotations | None:
    """Read the table that `ingest.table` names; None where it names none.

    Rows that say the same of one image are one row.

    Args:
        raw: Folder of the originals.
        settings: The `ingest` section.
        paths: Relative paths of all image files.

    Raises:
        DataError: When the table cannot be used as it is: columns that are missing, unlike rows for
            one image, several labels for one image, ids of one patient in two spellings, rows that
            fit no file or several.
        ConfigError: When settings that speak of the table do not fit it.
    """
    _refuse_taken(settings.columns)
    if settings.table is None:
        _refuse_settings_without_table(settings, raw, paths)
        return None
    path = raw / settings.table.file
    try:
        path.stat()
    except FileNotFoundError as error:
        raise DataError(
            f"There is no {path}. ingest.table is a path inside the raw folder."
        ) from error
    except OSError:
        pass  # the reader says why
    table = read_table(path)
    try:
        return _annotations(raw, settings, settings.table, paths, table)
    except DataError as error:
        if not table.remarks:
            raise
        raise DataError(f"{error} ({'; '.join(table.remarks)}.)") from error


def _annotations(
    raw: Path, settings: Ingest, named: ImageTable, paths: Sequence[str], table: Table
) -> Annotations:
    """What the table says, see `read_annotations`; `named` are the columns as they are set."""
    columns = _with_patients(named, table)
    if columns.patient is None and not _others_name_patients(settings, raw, paths):
        _refuse_idle_aliases(settings.aliases)
    absent = [name for name in settings.columns if not table.has(name)]
    fields = _fields(absent, raw, paths)
    kept = [name for name in settings.columns if name not in fields]
    rows = _read_rows(table, columns, settings.aliases, kept)
    with_image = rows[rows["image"] != ""]
    if with_image.empty:
        raise DataError(
            f"{table.path} names no image: it has no rows below its header ({table.names})."
        )
    distinct = with_image.drop_duplicates()
    _refuse_unlike_rows(distinct, columns)
    matched = match(distinct["image"].tolist(), paths)
    classes = _classes(rows, columns)
    if paths:
        _refuse_unusable(columns, matched, paths)
        _refuse_classes_without_file(columns, classes, distinct, matched)
    of_path = _annotations_by_path(distinct, matched, kept)
    remarks = [
        *table.remarks,
        *_remarks_on_names(table, columns),
        *spellings.remarks_on_alike(classes),
        *_remarks_on_rows(columns, len(rows), len(with_image), len(distinct)),
        *_remarks_on_files(columns, matched),
        *_remarks_on_folders(columns, classes, of_path),
    ]
    return Annotations(
        table=columns,
        classes=classes,
        of_path=of_path,
        remarks=tuple(remarks),
        guesses=table.remarks,
    )


def _with_patients(columns: ImageTable, table: Table) -> ImageTable:
    """The columns with that of patient ids, where it is there without being named."""
    if columns.patient is None and table.has(PATIENT_COLUMN):
        return columns.model_copy(update={"patient": PATIENT_COLUMN})
    return columns


def _read_rows(
    table: Table, columns: ImageTable, aliases: Mapping[str, str], kept: Sequence[str]
) -> pd.DataFrame:
    """The columns of a table that are used, under the names they have in the manifest."""
    rows = pd.DataFrame({"image": table.column(columns.image).map(plain_path)})
    rows["class_name"] = _labels(table, columns)
    rows["patient"] = _patients(table, columns, aliases)
    rows["official_split"] = _sides(table, columns)
    for name in kept:
        rows[name] = table.column(name)
    return rows


def _annotations_by_path(
    rows: pd.DataFrame, matched: Match, kept_columns: Sequence[str]
) -> dict[str, Annotation]:
    annotations = {}
    for row in rows.to_dict("records"):
        path = matched.path_of.get(row["image"])
        if path is None:
            continue
        annotations[path] = Annotation(
            class_name=row["class_name"],
            patient=row["patient"],
            side=row["official_split"],
            columns={name: row[name] for name in kept_columns},
        )
    return annotations


# --- settings that do not fit ---------------------------------------------------------------------


def _refuse_settings_without_table(settings: Ingest, raw: Path, paths: Sequence[str]) -> None:
    fields = _fields(settings.columns, raw, paths)
    for name in settings.columns:
        if name not in fields:
            why = headers.why_missing(name)
            raise ConfigError(
                f"ingest.columns names {name!r}, which is {why}, and ingest.table is null. Set ingest.table, or "
                f"leave it out."
            )
    if settings.aliases and not _others_name_patients(settings, raw, paths):
        raise ConfigError(
            "ingest.aliases speaks of ingest.table, which is null. Set ingest.table, or patient_folder."
        )


def _others_name_patients(settings: Ingest, raw: Path, paths: Sequence[str]) -> bool:
    """Whether folders name the patients, or headers of DICOM files may."""
    if settings.patient_folder is not None:
        return True
    return _has_headers(raw, paths)


def _has_headers(raw: Path, paths: Sequence[str]) -> bool:
    """Whether at least one file is DICOM."""
    return any(dicom.is_dicom_file(raw / path) for path in paths)


def _fields(names: Sequence[str], raw: Path, paths: Sequence[str]) -> set[str]:
    """Of columns those that are read from the headers of the files; these are looked at once, and only if need be."""
    fields = {name for name in names if not headers.obstacle(name)}
    return fields if fields and _has_headers(raw, paths) else set()


def _refuse_idle_aliases(aliases: Mapping[str, str]) -> None:
    if aliases:
        raise ConfigError(
            "ingest.aliases speaks of patient ids, and ingest.table has no column of them. Name it in "
            "ingest.table: {file, patient}."
        )


def _refuse_taken(names: Sequence[str]) -> None:
    taken = sorted(_TAKEN.intersection(names))
    if taken:
        raise ConfigError(
            f"ingest.columns cannot hold {', '.join(taken)}: the manifest has columns of that name."
        )


# --- columns --------------------------------------------------------------------------------------


def _patients(table: Table, columns: ImageTable, aliases: Mapping[str, str]) -> pd.Series | str:
    """Ids of the patients, each person under one; empty without a column of them."""
    if columns.patient is None:
        return ""
    if not table.has(columns.patient):
        raise DataError(
            f"{table.path} lacks the column(s) {columns.patient}; it has {table.names}. Name the column of "
            f"patient ids in ingest.table: {{file, patient}}; without patient every image counts as one."
        )
    where = f"column {columns.patient} of {columns.file}"
    return spellings.patient_ids(table.column(columns.patient), aliases, where)


def _sides(table: Table, columns: ImageTable) -> pd.Series | str:
    """The published side of each row, train or test; empty without a column of them."""
    if columns.split is None:
        return ""
    cells = spellings.without_missing(table.column(columns.split))
    side_of = {}
    for word in cells.unique():
        side = layouts.side_of_one(word) if word else ""
        if word and not side:
            num_rows = int((cells == word).sum())
            raise DataError(
                f"Column {columns.split} of {columns.file} says {word!r} in {counted(num_rows, 'row')}. Expected are "
                f"train, val (which counts as train) and test; found are {examples(cells.unique())}."
            )
        side_of[word] = side
    return cells.map(side_of)


def _labels(table: Table, columns: ImageTable) -> pd.Series | str:
    """The class of each row; empty where the folders name the classes."""
    if not columns.label:
        return ""
    if len(columns.label) > 1:
        return _labels_of_flags(table, columns)
    names = spellings.class_names(_label_cells(table, columns))
    _refuse_several_labels(names, columns)
    return names


def _label_cells(table: Table, columns: ImageTable) -> pd.Series:
    """The one column of labels; a list of one label, as Python writes it, is this label."""
    return table.column(columns.label[0]).str.replace(_LIST_OF_ONE, r"\2", regex=True)


def _refuse_several_labels(names: pd.Series, columns: ImageTable) -> None:
    """Refuse cells that hold several labels, such as `Effusion|Mass`."""
    known = set(names.unique())
    several = [name for name in known if _is_several(name, known)]
    if not several:
        return
    is_several = names.isin(several)
    commonest = names[is_several].value_counts().index[0]
    raise DataError(
        f"Column {columns.label[0]} of {columns.file} holds several labels in one cell in {is_several.sum()} of "
        f"{counted(len(names), 'row')}, most often {commonest!r}. A comparison needs one class for each image. "
        f"Add a column with the class you ask about (for example Effusion and No Finding, and nothing "
        f"where an image is to be left out), and name it in ingest.table.label."
    )


def _is_several(name: str, known: set[str]) -> bool:
    """Whether a cell is a list: divided by a bar, or into parts that stand alone elsewhere.

    One part that does is enough behind a semicolon, which stands in no name.
    """
    if "|" in name or _LIST.fullmatch(name):
        return True
    if not known.isdisjoint(part.strip() for part in name.split(";")[:-1]):
        return True
    for delimiter in (";", ",", "/", "+", "&"):
        parts = [part.strip() for part in name.split(delimiter)]
        if len(parts) > 1 and known.issuperset(parts):
            return True
    return False


def _labels_of_flags(table: Table, columns: ImageTable) -> pd.Series:
    """The class of each row whose column holds 1; empty where none does."""
    flags = {}
    for name in columns.label:
        flags[name] = _flags(table.column(name), name, columns)
    is_of_class = pd.DataFrame(flags)
    num_classes = is_of_class.sum(axis=1)
    several = is_of_class[num_classes > 1]
    if len(several):
        first = several.index[0]
        named = [name for name in columns.label if is_of_class.at[first, name]]
        raise DataError(
            f"{columns.file} gives {counted(len(several), 'row')} more than one of the classes "
            f"{', '.join(columns.label)}, the first on line {first}: {in_words(named)}. A comparison needs one "
            f"class for each image. Add a column with the class you ask about, and name it in "
            f"ingest.table.label."
        )
    return is_of_class.idxmax(axis=1).where(num_classes == 1, "")


def _flags(cells: pd.Series, name: str, columns: ImageTable) -> pd.Series:
    """Whether each cell of a column says yes."""
    words = cells.map(lambda cell: _WHOLE.sub(r"\1", cell.casefold()))
    is_yes = words.isin(_YES)
    is_known = is_yes | words.isin(_NO) | words.map(spellings.is_missing)
    if not is_known.all():
        unknown = cells[~is_known].unique()
        raise DataError(
            f"Column {name} of {columns.file} says {examples(unknown)}. Several columns in ingest.table.label hold "
            f"1 (or yes) for the class of an image, and 0 (or nothing) for the others. Where a row is not certain, "
            f"leave its cells empty, or add a column with the class you ask about and name it in ingest.table.label."
        )
    return is_yes


def _classes(rows: pd.DataFrame, columns: ImageTable) -> tuple[str, ...]:
    """The classes that a table names, sorted; none where it has no column of them."""
    if not columns.label:
        return ()
    label = in_words(columns.label)
    classes = sorted(name for name in rows["class_name"].unique() if name)
    if len(classes) < 2:
        raise DataError(
            f"Column {label} of {columns.file} has to name at least two classes; found: "
            f"{', '.join(classes) or 'none'}."
        )
    if len(classes) > _CLASSES_MAX:
        raise DataError(
            f"Column {label} of {columns.file} holds {len(classes)} different values, as {examples(classes)}. "
            f"Name the column of the classes in ingest.table.label."
        )
    return tuple(classes)


# --- rows and files -------------------------------------------------------------------------------


def _refuse_unlike_rows(rows: pd.DataFrame, columns: ImageTable) -> None:
    """Refuse rows that say different things of one image."""
    is_repeated = rows["image"].duplicated(keep=False)
    images = rows.loc[is_repeated, "image"].unique()
    if len(images) == 0:
        return
    of_first = rows[rows["image"] == images[0]]
    name_of_column = {
        "class_name": " or ".join(columns.label),
        "patient": columns.patient,
        "official_split": columns.split,
    }
    unlike = []
    for column in rows.columns.drop("image"):
        values = of_first[column].unique()
        if len(values) > 1:
            name = name_of_column.get(column, column)
            unlike.append(f"{name} {in_words([repr(value) for value in values])}")
    others = f"; so it is with {len(images) - 1} more" if len(images) > 1 else ""
    raise DataError(
        f"{columns.file} has more than one row for {images[0]}, with {', '.join(unlike)}{others}. Keep one."
    )


def _refuse_unusable(columns: ImageTable, matched: Match, paths: Sequence[str]) -> None:
    """Refuse a row that fits several files, several rows that fit one, and rows that all fit none."""
    advice = f"Write the path inside the raw folder in column {columns.image}."
    for name, fitting in matched.ambiguous.items():
        raise DataError(
            f"{columns.file} names {name!r}, which fits {len(fitting)} files: {first_of(fitting, separator=', ')} "
            f"({counted(len(matched.ambiguous), 'such row')}). {advice}"
        )
    name_of_path: dict[str, str] = {}
    for name, path in matched.path_of.items():
        if path in name_of_path:
            raise DataError(
                f"{columns.file} names {name_of_path[path]!r} and {name!r}, which both fit the file {path}. {advice}"
            )
        name_of_path[path] = name
    if not name_of_path:
        raise DataError(
            f"None of the {counted(len(matched.absent), 'image')} that {columns.file} names is among the "
            f"{counted(len(paths), 'image file')}: its first row says {matched.absent[0]!r}, the first file is "
            f"{paths[0]!r}. Expected in column {columns.image} is the path inside the raw folder, or the "
            f"file's name with or without its ending."
        )


def _refuse_classes_without_file(
    columns: ImageTable, classes: Sequence[str], rows: pd.DataFrame, matched: Match
) -> None:
    """Refuse classes of which no row has a file: half a download, or rows that are none of images."""
    has_file = rows["image"].isin(matched.path_of)
    lacking = sorted(set(classes) - set(rows.loc[has_file, "class_name"]))
    if not lacking:
        return
    without = rows[rows["class_name"].isin(lacking)]
    raise DataError(
        f"{columns.file} names the class {in_words(lacking)} in {counted(len(without), 'row')}, none of which "
        f"has a file; the first: {without['image'].iloc[0]!r}. Complete the folder, or leave out those rows."
    )


def _remarks_on_folders(
    columns: ImageTable, classes: Sequence[str], of_path: Mapping[str, Annotation]
) -> list[str]:
    """Which files lie in a folder that is called like another class than the table gives them."""
    class_of_key = {class_key(name): name for name in classes}
    unlike = []
    for path, annotation in of_path.items():
        folders = {class_of_key.get(class_key(name)) for name in path.split("/")[:-1]} - {None}
        if folders and annotation.class_name and annotation.class_name not in folders:
            unlike.append(f"{path} ({annotation.class_name})")
    if not unlike:
        return []
    files = counted(len(unlike), "file")
    return [
        f"{files} in a folder called like another class than {columns.file} gives, {_the_first(unlike)}; "
        f"the table counts"
    ]


def _remarks_on_names(table: Table, columns: ImageTable) -> list[str]:
    """Which class names were joined."""
    if len(columns.label) != 1:
        return []
    joined = spellings.joined_names(_label_cells(table, columns))
    return [f"class names in {columns.file} that mean one class: {joined}"] if joined else []


def _remarks_on_rows(columns: ImageTable, all_rows: int, named: int, distinct: int) -> list[str]:
    """How many rows name no image, and how many only repeat what another says."""
    remarks = []
    if named < all_rows:
        rows = counted(all_rows - named, "row")
        remarks.append(f"{rows} of {columns.file} left out: column {columns.image} is empty")
    if distinct < named:
        images = counted(distinct, "image")
        remarks.append(f"{columns.file} names {images} in {named} rows, which say the same of it")
    return remarks


def _remarks_on_files(columns: ImageTable, matched: Match) -> list[str]:
    """What was matched by name only, and what has no counterpart."""
    remarks = []
    if matched.loose:
        rows = counted(len(matched.loose), "row")
        first = matched.loose[0]
        remarks.append(
            f"{rows} of {columns.file} matched by name, as {first!r} is {matched.path_of[first]}"
        )
    if matched.absent:
        rows = counted(len(matched.absent), "row")
        remarks.append(f"no file for {rows} of {columns.file}, {_the_first(matched.absent)}")
    if matched.unnamed:
        files = counted(len(matched.unnamed), "file")
        remarks.append(f"no row in {columns.file} for {files}, {_the_first(matched.unnamed)}")
    return remarks


def _the_first(names: Sequence[str]) -> str:
    return f"the first: {first_of(names, most=_NAMED, separator=', ')}"
