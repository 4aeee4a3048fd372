"""Where the aliases of a registered model point."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from equipoise.registry import audit


def pointed_at(store: MlflowClient, name: str, alias: str = audit.CHAMPION) -> str | None:
    """Number of the version an alias points to; None where it is not there."""
    version = audit.by_alias(store, name, alias)
    return str(version.version) if version else None
