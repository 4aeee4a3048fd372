"""`python src VERB ...` runs Equipoise from a checkout, with nothing installed but its dependencies."""

from equipoise.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
