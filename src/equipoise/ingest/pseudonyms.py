"""Keyed hashes in place of patient and image ids. The key lives outside the repository and is made once per person."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from equipoise.core.environment import environment
from equipoise.core.errors import ConfigError

_KEY_BYTES = 32
#: Of each hash: 80 bits, enough that two ids of one study never get the same one.
_DIGITS = 20
_FINGERPRINT_DIGITS = 12


class Pseudonyms:
    """HMAC-SHA-256 of ids under one key.

    Every study and every kind of id has hashes of its own, so that nobody can link two studies.

    Attributes:
        fingerprint: Names the key without telling it: 12 hexadecimal digits.
    """

    def __init__(self, key: bytes, study: str) -> None:
        self._key = key
        self._study = study
        digest = hashlib.sha256(b"equipoise pseudonym key" + key).hexdigest()
        self.fingerprint = digest[:_FINGERPRINT_DIGITS]

    def of(self, kind: str, value: str) -> str:
        """20 hexadecimal digits (80 bits) that stand for an id.

        >>> Pseudonyms(bytes(32), "demo").of("patient", "p1") == Pseudonyms(bytes(32), "demo").of("image", "p1")
        False
        """
        message = "\0".join((self._study, kind, value)).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def key_path() -> Path:
    """Where the key lies: EQUIPOISE_KEY, or `~/.equipoise/pseudonym.key`.

    Raises:
        ConfigError: Where the user has no home folder, as in a container that runs under a number without a name.
    """
    named = environment("EQUIPOISE_KEY") or "~/.equipoise/pseudonym.key"
    try:
        return Path(named).expanduser().resolve()
    except RuntimeError as error:
        raise ConfigError(
            f"The pseudonym key would lie at {named}, and there is no such home folder. Set EQUIPOISE_KEY."
        ) from error


def load(study: str, root: Path) -> Pseudonyms:
    """Read the key, or make it where there is none.

    Args:
        study: Name of the study; it goes into every hash.
        root: The repository, in which the key must not lie.

    Raises:
        ConfigError: When the key would lie in the repository, or the file holds no key.
    """
    path = key_path()
    if path.is_relative_to(root.resolve()):
        raise ConfigError(
            f"The pseudonym key {path} lies inside the repository. Set EQUIPOISE_KEY to a place outside."
        )
    _make_if_missing(path)
    return Pseudonyms(_read(path), study)


def _make_if_missing(path: Path) -> None:
    """Write a new random key that only this user may read, unless the file is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(
            f"The pseudonym key {path} cannot be made: {error.strerror}. Set EQUIPOISE_KEY."
        ) from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_KEY_BYTES) + "\n")


def _read(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The pseudonym key {path} cannot be read as hexadecimal digits: {error}"
        ) from error
    if len(key) < _KEY_BYTES:
        raise ConfigError(
            f"The pseudonym key {path} holds {len(key)} bytes, {_KEY_BYTES} are expected. "
            f"Restore it from your copy; with another key every id changes."
        )
    return key
