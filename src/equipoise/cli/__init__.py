"""What is called from outside: the program and the table of its verbs."""

from equipoise.cli.program import VERBS, main

__all__ = ["VERBS", "main"]
