# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
# Any build of torch, e.g. TORCH=torch==2.12.0, or the path of a wheel. It is installed first, and
# nothing installed later may replace it.
TORCH ?= torch==2.13.0
WORKERS ?= 2
NETS ?= 5000
SEED ?= 0
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := $(VENV)/constraints.txt
CORE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-zoo test-all fuzz check format clean distclean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(CORE)  ## Train, compress, export, check and time a small CNN (no data to fetch)
	$(BIN)/fxcompress demo

test: $(DEV)  ## Run the tests, but for those marked slow
	$(BIN)/pytest -n $(WORKERS) -m "not slow" $(PYTEST_ARGS)

test-zoo: $(DEV)  ## Run the larger models of the zoo, where there is one
	$(BIN)/pytest -n $(WORKERS) -m slow tests/project/test_zoo_slice.py $(PYTEST_ARGS)

test-all: $(DEV)  ## Run every test
	$(BIN)/pytest -n $(WORKERS) $(PYTEST_ARGS)

fuzz: $(DEV)  ## Check every law on NETS random nets, from seed SEED on
	PYTHONPATH=tests $(BIN)/python -m fuzz --count $(NETS) --seed $(SEED) --workers $(WORKERS)

check: $(DEV)  ## Check format, style, types, layers and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(DEV)  ## Format the code and sort its imports
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .

clean:  ## Remove what builds and runs leave behind
	rm -rf build dist out *.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

distclean: clean  ## Remove the environment too, e.g. to install another TORCH
	rm -rf $(VENV)

$(CORE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fxcompress needs Python 3.11 or newer; choose one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install "$(TORCH)"
	$(BIN)/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' \
		> $(CONSTRAINTS)
	$(PIP) install --constraint $(CONSTRAINTS) --editable .
	touch $@

$(DEV): $(CORE)
	$(PIP) install --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@
