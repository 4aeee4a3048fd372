"""The code and settings of a checkout: the commit they are of, what differs from it, and their digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equipoise.core.environment import git
from equipoise.core.files import digest_of, file_digest

#: What the numbers depend on, beside the data.
_CODE = ("src", "params.yaml", "dvc.yaml", "requirements.lock", "conda.yaml", "pyproject.toml")
#: MLflow cuts a tag at 8,000 characters.
_UNCOMMITTED_CHARACTERS = 5000
#: Tag of a version: digest of code and params at its registration.
DIGEST_TAG = "equipoise.digest.code"


@dataclass(frozen=True)
class Code:
    """The code at the time of registration.

    Attributes:
        commit: The git commit; `none` where there is no git.
        uncommitted: Files of code and params that differ from it; None where there is no git.
        digest: Of the files as they lie there; None where there is no git.
    """

    commit: str
    uncommitted: list[str] | None
    digest: str | None

    @classmethod
    def of(cls, root: Path) -> Code:
        """The code of a checkout now."""
        commit = git("rev-parse", "HEAD", folder=root) or "none"
        return cls(commit, uncommitted(root), code_digest(root))

    def tags(self) -> dict[str, str]:
        """What a version says of its code."""
        return {
            "equipoise.git_commit": self.commit,
            "equipoise.uncommitted": self._uncommitted_text,
            DIGEST_TAG: self.digest or "no git",
        }

    @property
    def _uncommitted_text(self) -> str:
        if self.uncommitted is None:
            return "no git"
        return ", ".join(self.uncommitted)[:_UNCOMMITTED_CHARACTERS]


def uncommitted(root: Path) -> list[str] | None:
    """Files of code and params that differ from the commit; None where there is no git."""
    changes = git("status", "--porcelain", "--", *_CODE, folder=root)
    if changes is None:
        return None
    # Two letters and a space stand before each path.
    return [line[3:] for line in changes.splitlines()]


def code_digest(root: Path) -> str | None:
    """Digest of the code and params as they lie in a checkout, committed or not; None where there is no git."""
    words = ("ls-files", "--cached", "--others", "--exclude-standard", "--", *_CODE)
    listed = git(*words, folder=root)
    if listed is None:
        return None
    paths = sorted(set(listed.splitlines()))
    digests = {path: file_digest(root / path) for path in paths if (root / path).is_file()}
    return digest_of(digests)
