"""Keyed hashes in place of patient and image ids. The key lives outside the repository and is made once per person."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from equipoise.core.environment import environment
from equipoise.core.errors import ConfigError

_BYTES = 32
_SHOWN = 20


class Pseudonyms:
    """HMAC-SHA-256 of ids under one key, separate for every study and kind of id, so that studies cannot be linked.

    Attributes:
        fingerprint: Names the key without telling it: 12 hexadecimal digits.
    """

    def __init__(self, key: bytes, study: str) -> None:
        self._key, self._study = key, study
        self.fingerprint = hashlib.sha256(b"equipoise pseudonym key" + key).hexdigest()[:12]

    def of(self, kind: str, value: str) -> str:
        """20 hexadecimal digits (80 bits) that stand for an id.

        >>> Pseudonyms(bytes(32), "demo").of("patient", "p1") == Pseudonyms(bytes(32), "demo").of("image", "p1")
        False
        """
        message = "\0".join((self._study, kind, value)).encode()
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_SHOWN]


def key_path() -> Path:
    """EQUIPOISE_KEY, or `~/.equipoise/pseudonym.key`."""
    return (
        Path(environment("EQUIPOISE_KEY") or Path.home() / ".equipoise/pseudonym.key")
        .expanduser()
        .resolve()
    )


def load(study: str, root: Path | None = None) -> Pseudonyms:
    """Read the key, or make it where there is none.

    Raises:
        ConfigError: When the key would lie in the repository, or is not one.
    """
    path, root = key_path(), (root or Path.cwd()).resolve()
    if path.is_relative_to(root):
        raise ConfigError(
            f"The pseudonym key {path} lies inside the repository. Set EQUIPOISE_KEY to a place outside."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"The pseudonym key {path} cannot be made: {error.strerror}. Set EQUIPOISE_KEY."
        ) from error
    else:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The pseudonym key {path} cannot be read as hexadecimal digits: {error}"
        ) from error
    if len(key) < _BYTES:
        raise ConfigError(
            f"The pseudonym key {path} holds {len(key)} bytes, {_BYTES} are expected. Restore it from your copy; with "
            f"another key every id changes."
        )
    return Pseudonyms(key, study)
