"""The few families of errors that a user can meet.

Each message says what happened, what was expected and what to do.
"""

import difflib
from collections.abc import Iterable

#: A sentence that quotes what others wrote may be of any length; shown are so many characters of its ends.
_LONGEST, _BEGINNING, _END = 3_500, 2_000, 1_000


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose; the program ends with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; of a very long one the beginning, and the end, which says what to do."""
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        return f"{text[:_BEGINNING]}... ({len(text):,} characters) ...{text[-_END:]}"


class ConfigError(EquipoiseError):
    """A setting, a name or a combination of settings that cannot be used."""

    exit_code = 2


class MissingExtra(ConfigError):
    """A package that the light install lacks and this verb or setting needs."""


class DataError(EquipoiseError):
    """Images, labels or files on disk that no study can be made from."""


class LeakageError(DataError):
    """The same patient, or the same picture, is on two sides of a split."""


class TrialFailed(EquipoiseError):
    """Training diverged; a search goes on without the trial and fails when no trial is left."""


class PromotionRefused(EquipoiseError):
    """A gate of the model registry refused a promotion; no alias was moved."""

    exit_code = 3


class AuditFinding(EquipoiseError):
    """The log of decisions has a gap or an edit, or the champion is not where the log left it."""

    exit_code = 4


class StoreError(EquipoiseError):
    """MLflow's server cannot be reached or does not let this user; results stay in files."""

    exit_code = 5


#: Of more names than this an error lists those that are most alike.
_LISTED = 24
_ALIKE = 5


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> ConfigError:
    """Build the error for a name that does not exist; it suggests the nearest name that does.

    Args:
        kind: What the name would name, for example scenario.
        name: The name that was given; its first 100 characters are shown.
        known: The names that exist.
        where: Words that follow the name, with a space in front, for example " in params.yaml".

    >>> str(unknown_name("scenario", "oversampl", ["baseline", "oversample"]))
    "There is no scenario 'oversampl'. Did you mean 'oversample'? Known: baseline, oversample."
    """
    shown = str(name)[:100]
    known_names = sorted(str(known_name) for known_name in known)
    nearest = difflib.get_close_matches(shown, known_names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    listing = ", ".join(known_names) or "none"
    if len(known_names) > _LISTED:
        alike = difflib.get_close_matches(shown, known_names, n=_ALIKE, cutoff=0.0)
        listing = f"{len(known_names)}, most alike {', '.join(alike)}"
    return ConfigError(f"There is no {kind} '{shown}'{where}.{hint} Known: {listing}.")
