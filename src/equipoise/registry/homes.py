"""Whether a database of MLflow and the files it speaks of lie in the same checkout, and how to bring them together.

MLflow keeps absolute addresses. A copied checkout would write into its original, and a moved one finds nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import MetaData, Table, Update, create_engine, func, literal, update

from equipoise.core.errors import ConfigError

#: Folder beside mlflow.db for the artifacts of each experiment.
ARTIFACTS = "mlartifacts"
#: Where MLflow keeps addresses of files; databases of other versions lack some of them.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def other_home(database: Path) -> Path | None:
    """The folder of another checkout in which a database keeps its files; None where they lie beside it.

    Only experiments that Equipoise made are looked at: where others keep theirs is their choice.
    """
    for location in _own_locations(database):
        home, _, _ = location.rpartition(f"/{ARTIFACTS}/")
        if home != _uri(database.parent):
            return Path(unquote(urlsplit(home).path))
    return None


def rehome(database: Path) -> int:
    """Put the folder of a database in place of the other one in all addresses, and return their number.

    Raises:
        ConfigError: When the files did not come along.
    """
    other = other_home(database)
    if other is None:
        return 0
    if not (database.parent / ARTIFACTS).is_dir():
        raise ConfigError(
            f"There is no {database.parent / ARTIFACTS}: copy {other / ARTIFACTS} there first, so that nothing that "
            f"{database} speaks of is missing."
        )
    engine = create_engine(f"sqlite:///{database}")
    tables = MetaData()
    tables.reflect(engine)
    changed = 0
    with engine.begin() as connection:
        for name, column in _ADDRESSES:
            table = tables.tables.get(name)
            if table is None or column not in table.c:
                continue
            for moved in _moves(table, column, other, database.parent):
                changed += connection.execute(moved).rowcount
    engine.dispose()
    return changed


def _moves(table: Table, name: str, before: Path, after: Path) -> Iterator[Update]:
    """The changes of the beginning of the addresses in a column; MLflow writes URIs, and paths beside them."""
    column = table.c[name]
    for old, new in ((_uri(before), _uri(after)), (str(before), str(after.absolute()))):
        beginning = f"{old}/"
        rest = func.substr(column, len(beginning))
        is_below = func.substr(column, 1, len(beginning)) == beginning
        yield update(table).where(is_below).values({name: literal(new).concat(rest)})


def _own_locations(database: Path) -> list[str]:
    """Addresses of the experiments of Equipoise that are below a folder of this name."""
    if not database.is_file():
        return []
    with contextlib.closing(
        sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    ) as connection:
        try:
            rows = connection.execute(
                "select artifact_location from experiments where name like 'equipoise-%'"
            ).fetchall()
        except sqlite3.Error:  # of another schema, or in use: MLflow itself will say so
            return []
    return [location for (location,) in rows if location and f"/{ARTIFACTS}/" in location]


def _uri(folder: Path) -> str:
    return folder.absolute().as_uri()
