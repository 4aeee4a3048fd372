"""The few families of errors a user can meet. Each message says what happened, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose; the program ends with `exit_code`."""

    exit_code = 1


class ConfigError(EquipoiseError):
    """A setting, a name or a combination of settings that cannot be used."""

    exit_code = 2


class DataError(EquipoiseError):
    """Images, labels or files on disk that a study cannot be made from."""


class LeakageError(DataError):
    """The same patient, or the same picture, on two sides of a split."""


class TrialFailed(EquipoiseError):
    """Training diverged; a search goes on without the trial and fails only when no trial is left."""


class PromotionRefused(EquipoiseError):
    """A gate of the model registry said no; nothing was moved."""

    exit_code = 3


class AuditFinding(EquipoiseError):
    """The log of decisions has a gap or an edit, or the champion is not where the log left it."""

    exit_code = 4


class StoreError(EquipoiseError):
    """MLflow's server cannot be reached or does not let this user; results stay in files."""

    exit_code = 5


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> ConfigError:
    """Build the error for a name that does not exist, with the nearest one that does.

    >>> str(unknown_name("scenario", "oversampl", ["baseline", "oversample"]))
    "There is no scenario 'oversampl'. Did you mean 'oversample'? Known: baseline, oversample."
    """
    name, names = str(name)[:100], sorted(map(str, known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(
        f"There is no {kind} '{name}'{where}.{hint} Known: {', '.join(names) or 'none'}."
    )
