# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first; the second time that is instant.
# The first that really runs and is new enough: a version manager's stand-in can be on the PATH without its Python.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo smoke phantom test test-full test-gpu test-slurm test-ray setup lint help

help:            ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

demo: setup      ## Phantom data, training, inference, CSV, Dice table and a picture, in 3 minutes on two cores
	$(BIN)/python run_exp.py --preset demo --overwrite

smoke: setup     ## The same path in a minute
	$(BIN)/python run_exp.py --preset smoke --overwrite

phantom: setup   ## Train the weights in checkpoints/phantom anew (two hours on two cores)
	$(BIN)/python run_exp.py --preset phantom --overwrite
	$(BIN)/python scripts/release_weights.py checkpoints/phantom_training checkpoints/phantom --overwrite
	$(BIN)/python scripts/model_card.py checkpoints/phantom --write

# Files side by side, one thread each; one process more than cores, as tests often wait for commands that they start.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 8 --dist loadfile

test: setup      ## The test suite (under 10 minutes on two cores)
	$(PYTEST) -m "not full and not gpu and not cluster"

test-full: setup ## All tests, the whole demo included
	$(PYTEST) -m "not gpu and not cluster"

test-gpu: setup  ## The tests that need a GPU
	$(BIN)/python -m pytest -m gpu -rs

test-slurm: setup ## The queue on a real Slurm of this machine (Debian's slurm-wlm and munge, and the extra slurm)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation -e '.[slurm]'
	$(BIN)/python -m pytest -m cluster -rs tests/cluster/test_slurm.py

test-ray: setup  ## The queue on a Ray cluster of two pretended servers (the extra ray)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation -e '.[ray]'
	$(BIN)/python -m pytest -m cluster -rs tests/cluster/test_ray.py

lint: setup      ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/.done ## .venv with the pinned packages

.venv/.done: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: install one, or give make PYTHON=/path/to/it."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@
