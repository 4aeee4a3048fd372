"""A model by its address: which version of the registry it is, where its files lie, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from equipoise.core.errors import ConfigError, StoreError
from equipoise.core.text import first_line
from equipoise.registry import audit, tracking
from equipoise.service import packaged

#: `models:/NAME@ALIAS` and `models:/NAME/NUMBER`; any other address is of no version.
_REGISTERED = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")


class NamedVersion(NamedTuple):
    """A version of a registered model as an address names it: by an alias, or by its number."""

    name: str
    alias: str | None
    number: str | None

    def version(self, store: MlflowClient) -> ModelVersion | None:
        """What the registry has under this name; None where there is none."""
        if self.alias:
            return audit.by_alias(store, self.name, self.alias)
        return audit.version_of(store, self.name, self.number)


def registered(uri: str) -> NamedVersion | None:
    """The version that an address names; None for an address outside the registry.

    >>> registered("models:/equipoise-demo@champion")
    NamedVersion(name='equipoise-demo', alias='champion', number=None)
    >>> registered("s3://bucket/model")
    """
    match = _REGISTERED.fullmatch(uri)
    return None if match is None else NamedVersion(*match.groups())


def load(uri: str, root: Path) -> Any:
    """Load a registered model, to be run by the code that it was saved with.

    Where that is this checkout's, file by file, it is loaded here; else in a process of its own.

    Args:
        uri: Its address, for example models:/equipoise-demo@champion.
        root: Folder that holds params.yaml.

    Returns:
        MLflow's model, or a `Packaged` one: both have predict, input_example and metadata.

    Raises:
        ConfigError: When there is no such model, or it does not load.
        StoreError: When the server cannot be reached or does not let this user.
    """
    with _refused_by_name(uri):
        folder = _downloaded(uri, root)
        if packaged.has_own_code(folder) and not packaged.is_of_this_code(folder):
            return packaged.Packaged(folder)
        return mlflow.pyfunc.load_model(str(folder))


def download(uri: str, root: Path) -> Path:
    """The folder of a registered model on this machine; the arguments and errors are those of `load`."""
    with _refused_by_name(uri):
        return _downloaded(uri, root)


def _downloaded(uri: str, root: Path) -> Path:
    address = _source(tracking.client(root), uri)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=address))


@contextmanager
def _refused_by_name(uri: str) -> Iterator[None]:
    """Say of which model it is that it cannot be had."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a model is code, and its address may be of any store
        lost = tracking.store_error(error)
        if lost:
            raise lost from error
        raise ConfigError(f"{uri} cannot be loaded: {first_line(error)}") from error


def _source(store: MlflowClient, uri: str) -> str:
    """Where the files of a registered version lie; any other address is that already.

    Asked for `models:/...`, MLflow writes a file beside them, which another user may not.
    """
    named = registered(uri)
    if named is None:
        return uri
    number = named.number
    if named.alias:
        number = store.get_model_version_by_alias(named.name, named.alias).version
    return store.get_model_version_download_uri(named.name, number)
