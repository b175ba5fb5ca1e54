# Everything a user types. Each target makes the environment first if it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
SPEC ?= smoke
# More arguments for the command behind a target: make smoke ARGS="--set training.steps=50"
ARGS ?=

# torch for the parity check. A Linux machine without an NVIDIA GPU gets the small CPU build.
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
endif
TORCH_OPTIONS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --timeout 10 --retries 0)

.PHONY: help smoke test lint parity data bench clean

help:
	@echo "make smoke             train, pack and score a small byte-patch model with MLX on built-in text"
	@echo "make test              the test suite, parity of both engines included"
	@echo "make parity SPEC=name  prove that both engines compute the same thing for a spec"
	@echo "make data              list and verify the datasets"
	@echo "make lint              ruff and mypy"
	@echo "make bench SCRIPT=path MLX training speed against a public MLX script"
	@echo "make clean             remove the environment and caches; runs and datasets stay"

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bytetwin needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[mlx,cuda,data,dev]'
	touch $@

smoke: $(VENV)/installed
	$(BIN)/bytetwin train smoke --engine mlx --runs-dir $(RUNS) $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/installed
	$(BIN)/bytetwin parity $(SPEC) $(ARGS)

data: $(VENV)/installed
	$(BIN)/bytetwin data list
	$(BIN)/bytetwin data verify

bench: $(VENV)/installed
	$(BIN)/python -m tests.bench.mlx_speed $(SCRIPT) $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis bytetwin.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
