PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench recipe

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
