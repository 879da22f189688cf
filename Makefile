PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench recipe hashes

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
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(INSTALL) '.[bench]'
	$(BIN)/python -m benchmarks

# A recipe's stages by hand, everything below runs/NAME: make recipe NAME=mpnet-minilm
recipe: $(VENV)/with-demo
	$(BIN)/python -m stages.corpus --params recipes/$(NAME).yaml --out runs/$(NAME)/corpus --metrics runs/$(NAME)/corpus.json
	$(BIN)/python -m stages.encode --params recipes/$(NAME).yaml --corpus runs/$(NAME)/corpus \
		--out runs/$(NAME)/embeddings --metrics runs/$(NAME)/encode.json
	$(BIN)/python -m stages.fit --params recipes/$(NAME).yaml --corpus runs/$(NAME)/corpus \
		--embeddings runs/$(NAME)/embeddings --out runs/$(NAME)/student --metrics runs/$(NAME)/fit.json \
		--curve runs/$(NAME)/plots/fit_loss.csv
	$(BIN)/python -m stages.evaluate --params recipes/$(NAME).yaml --corpus runs/$(NAME)/corpus \
		--embeddings runs/$(NAME)/embeddings --model runs/$(NAME)/student --out runs/$(NAME)/evaluate.json \
		--cost runs/$(NAME)/cost.json --plots runs/$(NAME)/plots
	$(BIN)/python -m stages.report --params recipes/$(NAME).yaml --embeddings runs/$(NAME)/embeddings \
		--metrics runs/$(NAME) --plots runs/$(NAME)/plots --out runs/$(NAME)/report.html
	$(BIN)/python -m stages.export --params recipes/$(NAME).yaml --corpus runs/$(NAME)/corpus \
		--embeddings runs/$(NAME)/embeddings --model runs/$(NAME)/student --evaluation runs/$(NAME)/evaluate.json \
		--out runs/$(NAME) --metrics runs/$(NAME)/export.json
