"""What a table says of images: class, patient, published side and further columns (`ingest.table`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from equipoise.core.config import ImageTable, Ingest
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.core.text import counted, first_of, in_words
from equipoise.ingest import spellings
from equipoise.ingest.matching import Match, match, plain_path
from equipoise.ingest.tables import Table, read_table

#: Names that columns of the manifest, or of what is made from it, have already.
_TAKEN = {*Manifest.COLUMNS, "pixels", "patient", "image", "official_split", "part"}
#: More different values than this are no classes: the column holds ages, ids or sentences.
_CLASSES_MAX = 100
#: Images and values that a sentence names.
_NAMED = 3

_YES = frozenset({"1", "1.0", "true", "yes", "y", "x", "t"})
_NO = frozenset({"0", "0.0", "false", "no", "n", "f"})


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
    """The rows of a table, one for each image.

    Attributes:
        table: Which columns were read.
        classes: Names of the classes, sorted; empty where the table has no column of them.
        of_image: Name of an image in the table -> what its row says. After `among` the names are
            the paths of files.
        remarks: Sentences about what was found on the way.
    """

    table: ImageTable
    classes: tuple[str, ...]
    of_image: Mapping[str, Annotation]
    remarks: tuple[str, ...] = field(default=())

    def among(self, paths: Sequence[str]) -> Annotations:
        """The same with the paths of files as names, and remarks on what fits only one of both.

        Raises:
            DataError: When no row fits a file, when a row fits several files, or when several rows
                mean one file.
        """
        names = list(self.of_image)
        matched = match(names, paths)
        _refuse_ambiguous(self.table, matched)
        if not matched.path_of:
            raise DataError(
                f"None of the {counted(len(names), 'image')} that {self.table.file} names is among the "
                f"{counted(len(paths), 'image file')}: the first row says {names[0]!r}, the first file is "
                f"{paths[0]!r}. Expected in column {self.table.image} is the path inside the raw folder, or the "
                f"file's name with or without its ending."
            )
        of_path = {path: self.of_image[name] for name, path in matched.path_of.items()}
        remarks = [*self.remarks, *_remarks_on(self.table, matched)]
        return replace(self, of_image=of_path, remarks=tuple(remarks))


def read_annotations(raw: Path, settings: Ingest) -> Annotations | None:
    """Read the table that `ingest.table` names; None where it names none.

    Rows that say the same of one image are one row.

    Raises:
        DataError: When the table cannot be used as it is: columns that are missing, unlike rows for
            one image, several labels for one image, ids of one patient in two spellings.
        ConfigError: When settings that speak of the table do not fit it.
    """
    columns = settings.table
    if columns is None:
        _refuse_settings_without_table(settings)
        return None
    _refuse_taken(settings.columns)
    path = raw / columns.file
    if not path.exists():
        raise DataError(f"There is no {path}. ingest.table is a path inside the raw folder.")
    table = read_table(path)
    rows = pd.DataFrame({"image": table.column(columns.image).map(plain_path)})
    remarks = list(table.remarks)
    rows["class_name"] = _labels(table, columns, remarks)
    rows["patient"] = _patients(table, settings)
    rows["official_split"] = _sides(table, columns)
    for name in settings.columns:
        rows[name] = table.column(name)
    rows = _one_row_per_image(rows, columns, remarks)
    if rows.empty:
        raise DataError(f"{path} names no image: it has no rows below its header ({table.names}).")
    classes = sorted(name for name in rows["class_name"].unique() if name)
    if columns.label:
        _check_classes(columns, classes)
    of_image = {}
    for row in rows.to_dict("records"):
        kept = {name: row[name] for name in settings.columns}
        of_image[row["image"]] = Annotation(
            class_name=row["class_name"],
            patient=row["patient"],
            side=row["official_split"],
            columns=kept,
        )
    return Annotations(columns, tuple(classes), of_image, tuple(remarks))


# --- settings that do not fit ---------------------------------------------------------------------


def _refuse_settings_without_table(settings: Ingest) -> None:
    for name, value in (("columns", settings.columns), ("aliases", settings.aliases)):
        if value:
            raise ConfigError(
                f"ingest.{name} speaks of ingest.table, which is null. Set ingest.table."
            )


def _refuse_taken(names: Sequence[str]) -> None:
    taken = sorted(_TAKEN.intersection(names))
    if taken:
        raise ConfigError(
            f"ingest.columns cannot hold {', '.join(taken)}: the manifest has columns of that name."
        )


# --- columns --------------------------------------------------------------------------------------


def _patients(table: Table, settings: Ingest) -> pd.Series | str:
    """Ids of the patients, each person under one; empty without a column of them."""
    columns = settings.table
    if columns is None or columns.patient is None:
        return ""
    if not table.has(columns.patient):
        raise DataError(
            f"{table.path} lacks the column(s) {columns.patient}; it has {table.names}. Name the column of patient "
            f"ids in ingest.table: {{file, patient}}, or set patient: null there: then every image counts as a "
            f"patient."
        )
    where = f"column {columns.patient} of {columns.file}"
    return spellings.patient_ids(table.column(columns.patient), settings.aliases, where)


def _sides(table: Table, columns: ImageTable) -> pd.Series | str:
    """The published side of each row, train or test; empty without a column of them."""
    if columns.split is None:
        return ""
    cells = spellings.without_missing(table.column(columns.split))
    side_of = {}
    for word in cells.unique():
        side = spellings.side(word) if word else ""
        if side is None:
            num_rows = int((cells == word).sum())
            raise DataError(
                f"Column {columns.split} of {columns.file} says {word!r} in {counted(num_rows, 'row')}. Expected are "
                f"train, val (which counts as train) and test; found are {_examples(cells.unique())}."
            )
        side_of[word] = side
    return cells.map(side_of)


def _labels(table: Table, columns: ImageTable, remarks: list[str]) -> pd.Series | str:
    """The class of each row; empty where the folders name the classes."""
    if not columns.label:
        return ""
    if len(columns.label) > 1:
        return _labels_of_flags(table, columns)
    cells = table.column(columns.label[0])
    names = spellings.class_names(cells)
    _refuse_several_labels(names, columns)
    joined = spellings.joined_names(cells, names)
    if joined:
        remarks.append(f"class names in {columns.file} that mean one class: {joined}")
    return names


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
    """Whether a cell is a list: divided by a bar, or into parts that all stand alone elsewhere."""
    if "|" in name:
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
    words = cells.str.casefold()
    is_yes = words.isin(_YES)
    is_known = is_yes | words.isin(_NO) | words.map(spellings.is_missing)
    if not is_known.all():
        unknown = cells[~is_known].unique()
        raise DataError(
            f"Column {name} of {columns.file} says {_examples(unknown)}. Several columns in ingest.table.label hold "
            f"1 (or yes) for the class of an image, and 0 (or nothing) for the others."
        )
    return is_yes


def _check_classes(columns: ImageTable, classes: Sequence[str]) -> None:
    label = in_words(columns.label)
    if len(classes) < 2:
        raise DataError(
            f"Column {label} of {columns.file} names at least two classes where it can be used; found: "
            f"{', '.join(classes) or 'none'}."
        )
    if len(classes) > _CLASSES_MAX:
        raise DataError(
            f"Column {label} of {columns.file} holds {len(classes)} different values, as {_examples(classes)}. "
            f"Name the column of the classes in ingest.table.label."
        )


# --- rows and files -------------------------------------------------------------------------------


def _one_row_per_image(rows: pd.DataFrame, columns: ImageTable, remarks: list[str]) -> pd.DataFrame:
    """One row for each image; rows that name none are left out.

    Raises:
        DataError: When two rows say different things of one image.
    """
    named = rows[rows["image"] != ""]
    if len(named) < len(rows):
        unnamed = counted(len(rows) - len(named), "row")
        remarks.append(f"{unnamed} of {columns.file} left out: column {columns.image} is empty")
    distinct = named.drop_duplicates()
    is_repeated = distinct["image"].duplicated(keep=False)
    if is_repeated.any():
        _refuse_unlike_rows(distinct[is_repeated], columns)
    if len(distinct) < len(named):
        remarks.append(
            f"{columns.file} names {counted(len(distinct), 'image')} in {len(named)} rows, which say the same of it"
        )
    return distinct


def _refuse_unlike_rows(rows: pd.DataFrame, columns: ImageTable) -> None:
    images = rows["image"].unique()
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


def _refuse_ambiguous(table: ImageTable, matched: Match) -> None:
    """Refuse a row that fits several files, and several rows that fit one file."""
    advice = f"Write the path inside the raw folder in column {table.image}."
    for name, paths in matched.ambiguous.items():
        raise DataError(
            f"{table.file} names {name!r}, which fits {len(paths)} files: {first_of(paths, separator=', ')} "
            f"({counted(len(matched.ambiguous), 'such row')}). {advice}"
        )
    name_of_path: dict[str, str] = {}
    for name, path in matched.path_of.items():
        if path in name_of_path:
            raise DataError(
                f"{table.file} names {name_of_path[path]!r} and {name!r}, which both fit the file {path}. {advice}"
            )
        name_of_path[path] = name


def _remarks_on(table: ImageTable, matched: Match) -> list[str]:
    remarks = []
    if matched.loose:
        first = matched.loose[0]
        remarks.append(
            f"{counted(len(matched.loose), 'row')} of {table.file} matched by name, as {first!r} is "
            f"{matched.path_of[first]}"
        )
    if matched.absent:
        rows = counted(len(matched.absent), "row")
        remarks.append(f"no file for {rows} of {table.file}, {_the_first(matched.absent)}")
    if matched.unnamed:
        files = counted(len(matched.unnamed), "file")
        remarks.append(f"no row in {table.file} for {files}, {_the_first(matched.unnamed)}")
    return remarks


def _the_first(names: Sequence[str]) -> str:
    return f"the first: {first_of(names, most=_NAMED, separator=', ')}"


def _examples(values: Sequence[str]) -> str:
    return first_of([repr(value) for value in values], most=_NAMED, separator=", ")
