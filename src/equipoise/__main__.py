"""`python -m equipoise VERB ...`."""

from equipoise.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
