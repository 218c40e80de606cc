# Everything below sets itself up: a clone, Python 3.11 or newer, make and g++ are enough.

PYTHON ?= $(shell command -v python3 || command -v python3.11)
# Test processes side by side.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# PEERS=1: measure other libraries beside fastconv, and install them first.
PEERS ?=
# What benchmarks and tests are told in addition: make bench ARGS='--help', make test ARGS='-m "not slow"'.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := fastconv benchmarks tests

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help test bench gpu lint format wheel clean
.DEFAULT_GOAL := help
# Two pips in one environment get in each other's way.
.NOTPARALLEL:

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One thread of BLAS and OpenMP a test process, for as many processes as there are cores. The tests that ask for
# threads set them themselves.
test: lint ## check style and types, then run every test
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

bench: $(if $(filter 1,$(PEERS)),$(VENV)/.peers) $(VENV)/.bench ## measure; PEERS=1 also installs and measures other libraries
	$(BIN)/python -m benchmarks $(ARGS)

# On the machine's own Python: one with a GPU has PyTorch and CuPy for it there.
gpu: ## check the CUDA kernels on a GPU, and measure them beside cuDNN
	$(PYTHON) -m benchmarks.gpu $(ARGS)

lint: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.dev ## bring the sources into form
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

wheel: $(VENV)/.dev ## build the sdist and the wheel into dist/
	$(BIN)/python -m build

clean: ## remove what the above made
	rm -rf $(VENV) build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# .venv/.EXTRA says that the extra of that name is installed, as pyproject.toml has it now.
$(VENV)/.%: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
