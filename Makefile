# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first; the second time that is instant.
PYTHON ?= $(firstword $(shell command -v python3.12 python3.11 python3))
BIN := .venv/bin

.PHONY: demo smoke test test-full setup lint help

help:            ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: setup      ## Phantom data, training, inference, CSV, Dice table and a picture, in under 8 minutes on two cores
	$(BIN)/python run_exp.py --preset demo --overwrite

smoke: setup     ## The same path in a minute
	$(BIN)/python run_exp.py --preset smoke --overwrite

test: setup      ## The test suite (under 10 minutes on two cores)
	$(BIN)/python -m pytest -m "not full"

test-full: setup ## All tests, the whole demo included
	$(BIN)/python -m pytest

lint: setup      ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/.done ## .venv with the pinned packages

.venv/.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: give make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@
