PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-long lint bench

# `demo` needs less than `test` and `lint`: two stamps, so that a newcomer waits for no more than he uses.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e

setup: $(VENV)/with-dev

$(VENV)/with-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/with-dev: $(VENV)/with-demo
	$(INSTALL) '.[demo,dev]'
	touch $@

demo: $(VENV)/with-demo
	PATH="$(abspath $(BIN)):$$PATH" dvc repro
	$(BIN)/python -m stages.summary

test: setup
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Environments with other versions of libraries, wheels, recipes, a browser: minutes more than `test`.
test-long: setup
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(INSTALL) '.[bench]'
	$(BIN)/python -m benchmarks
