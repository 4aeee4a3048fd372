"""Which Equipoise this is; the package itself says it, and so imports nothing else."""

from __future__ import annotations

#: As pyproject.toml has it.
VERSION = "0.1.0"
