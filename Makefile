PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-long lint bench hashes

# `demo` needs less than `test` and `lint`: two stamps, so that a newcomer waits for no more than he uses.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) -c constraints.txt -e
# Every package by its digests; but for torch, of which each kind of machine has its own build (docs/decisions.md).
HASHED := $(PIP) --require-hashes --no-deps -r
HASHES := uv pip compile --quiet pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header --no-emit-package torch
PROJECT := $(PIP) --no-deps --no-build-isolation -e .

setup: $(VENV)/with-dev

$(VENV)/with-demo: pyproject.toml constraints.txt requirements/demo.txt
	$(PYTHON) -m venv $(VENV)
	$(HASHED) requirements/demo.txt
	$(PIP) -c constraints.txt torch
	$(PROJECT)
	touch $@

$(VENV)/with-dev: $(VENV)/with-demo requirements/dev.txt
	$(HASHED) requirements/dev.txt
	$(PROJECT)
	touch $@

# After a change of pyproject.toml or constraints.txt. Needs uv; asks the index for the digests of all files of a release.
hashes:
	$(HASHES) --extra demo --output-file requirements/demo.txt
	$(HASHES) --extra demo --extra dev --output-file requirements/dev.txt

demo: $(VENV)/with-demo
	PATH="$(abspath $(BIN)):$$PATH" dvc repro
	$(BIN)/python -m stages.summary

test: setup
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Environments with other versions of libraries, wheels, recipes, a browser: minutes more than `test`.
test-long: setup
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(INSTALL) '.[bench]'
	$(BIN)/python -m benchmarks
