# Needs python3 (3.11-3.13), make and git; everything else is installed into .venv by `make env`.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
# DVC and MLflow start `python`: they must find the one of this environment.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1

.PHONY: help env checkout demo test slow kill fuzz race check docs lock bench validate clean

help:
	@echo "make demo   compare six remedies for imbalance on drawn images (about 3 minutes), register the winner"
	@echo "make test   lint, types and the test suite"
	@echo "make docs   build the docs site into site/"
	@echo "make slow   the next three, one after the other (about an hour and a half on 2 cores, 6 GB of memory)"
	@echo "make kill   130 kills at drawn moments: every verb, dvc repro, mlflow run; also on PostgreSQL and S3 (1 hour, 4 GB; KILL=--help)"
	@echo "make fuzz   20,000 damaged or hostile inputs through the doors that users come in by (15 minutes, 2 GB; FUZZ=--help)"
	@echo "make race   50 races of two hosts for one champion on one server; Linux (10 minutes, 3 GB; RACE=--help)"
	@echo "make env    only make the environment (.venv)"
	@echo "make lock   derive requirements.lock and conda.yaml from pyproject.toml"
	@echo "make bench  measure costs beside the usual ways (about 15 minutes; BENCH=--quick: 2)"
	@echo "make validate  coverage and error rates of intervals and verdicts on simulated studies (VALIDATE=--quick: 2 minutes)"

.venv/.made: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Equipoise needs Python 3.11, 3.12 or 3.13, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

env: .venv/.made

# DVC works inside a git checkout, which a zip is not: better said before anything is installed.
checkout:
	@git rev-parse --git-dir > /dev/null 2>&1 || { \
	  echo "This folder is no git checkout (did it come as a zip?), and DVC works inside one: run git init && git add -A && git commit -m start"; \
	  exit 1; }

demo: checkout env
	$(RUN) $(BIN)/equipoise main

test: env check
	$(RUN) $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

slow: kill fuzz race

kill: env
	$(RUN) $(BIN)/python tests/whole/slow/kills.py $(KILL)

fuzz: env
	$(RUN) $(BIN)/python tests/fabricate/damage.py $(FUZZ)

race: env
	$(RUN) $(BIN)/python tests/whole/slow/races.py $(RACE)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(RUN) $(BIN)/mypy

docs: env
	NO_MKDOCS_2_WARNING=1 $(RUN) $(BIN)/python -m mkdocs build --strict

lock: env
	$(BIN)/python .ci/lock.py
	$(BIN)/python .ci/templates.py

bench: env
	$(RUN) $(BIN)/python benchmarks/bench.py $(BENCH)

validate: env
	$(RUN) $(BIN)/python benchmarks/validation.py $(VALIDATE)

clean:
	rm -rf .venv
