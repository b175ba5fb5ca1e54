# Everything a user types. Each target makes the environment first if it is missing.

# The Python to make the environment with; empty takes the newest that is installed, from 3.11 on.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs
SPEC ?= $(if $(filter h100 preflight prepare,$(MAKECMDGOALS)),h100,smoke)
# Processes that run tests side by side.
WORKERS ?= 2
# More arguments for the command behind a target: make smoke ARGS="--set training.steps=50"
ARGS ?=

# torch for the parity check. A Linux machine without an NVIDIA GPU gets the small CPU build.
NVIDIA := $(shell command -v nvidia-smi 2>/dev/null)
ifeq ($(shell uname -s),Linux)
ifeq ($(NVIDIA),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
endif
TORCH_OPTIONS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --timeout 10 --retries 0)

# make h100: GPUS=all or a number; RANKS=2 trains with two processes on the CPU instead. FORCE names rows of
# preflight that may be no-go, STRICT=1 refuses what is a risk, PRICE is dollars per GPU-hour, SEED replaces the spec's
# seed, RECORD is for the record.
GPUS ?= all
RANKS ?= $(if $(filter all,$(GPUS)),gpus,$(GPUS))
SHARDS ?= 80
RUN ?= $(basename $(notdir $(SPEC)))$(if $(SEED),-seed$(SEED))
RUN_DIR := $(RUNS)/$(RUN)
RECORDS ?= records
SPEC_WORDS = $(SPEC) $(if $(SEED),--set training.seed=$(SEED)) $(ARGS)
PREFLIGHT_WORDS = --engine torch --runs-dir $(RUNS) $(if $(filter gpus,$(RANKS)),,--ranks $(RANKS)) $(if $(PRICE),--price $(PRICE)) \
	$(if $(STRICT),--strict) $(foreach row,$(FORCE),--force $(row))

# Before anything is installed or downloaded.
ifeq ($(RANKS) $(filter h100,$(MAKECMDGOALS)),gpus h100)
ifeq ($(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU'),0)
$(error no NVIDIA GPU found on this machine; make h100 RANKS=2 trains with two processes on the CPU)
endif
endif

# Training on a rented node needs torch alone. The other targets need both engines and the tools.
EXTRAS := mlx,cuda,data,dev
NODE_EXTRAS := cuda,data
NODE := $(if $(NVIDIA),$(if $(wildcard $(VENV)/installed),$(VENV)/installed,$(VENV)/installed-node),$(VENV)/installed)

.PHONY: help smoke test test-fast test-machines lint parity docs prepare preflight h100 data bench clean

help:
	@echo "make smoke                train, pack and score a small byte-patch model with MLX on built-in text"
	@echo "make test-fast            what to run while working: the tests that take no longer than about a second"
	@echo "make test                 the whole test suite, parity of both engines included, in WORKERS=2 processes"
	@echo "make test-machines        parity as other processors compute, and MLX on the operations of its GPUs"
	@echo "make parity SPEC=name     prove that both engines compute the same thing for a spec"
	@echo "make preflight SPEC=name  go or no-go before money is spent"
	@echo "make prepare SPEC=name    download the datasets of a spec"
	@echo "make h100                 on a GPU node: data, preflight, training on all GPUs, record; run again to resume"
	@echo "make data                 list and verify the datasets"
	@echo "make lint                 ruff and mypy"
	@echo "make docs                 the documentation as a site, in site/"
	@echo "make bench SCRIPT=path    MLX training speed against a public MLX script"
	@echo "make clean                remove the environment and caches; runs and datasets stay"

$(VENV)/installed: pyproject.toml
	$(call install,$(EXTRAS))

$(VENV)/installed-node: pyproject.toml
	$(call install,$(NODE_EXTRAS))

$(VENV)/installed-docs: pyproject.toml
	$(environment)
	$(BIN)/python -m pip install --quiet $(EDITABLE) '.[docs]'
	touch $@

# By its path: setuptools' own finder comes after a folder of the same name where Python is started, and a clone is one.
EDITABLE := --config-settings editable_mode=compat --editable

# uv makes environments without pip.
define environment
@test -x $(BIN)/python || { python=$$(sh .ci/find_python "$(PYTHON)") && "$$python" -m venv $(VENV); }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
endef

define install
$(environment)
$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) torch==2.13.0
$(BIN)/python -m pip install --quiet $(EDITABLE) '.[$(1)]'
touch $@
endef

smoke: $(VENV)/installed
	$(BIN)/bytetwin train smoke --engine mlx --runs-dir $(RUNS) $(ARGS)

# Each worker is one thread. What the tests of a file share is made once, so a file stays with one worker. By default
# files with few tests come last, and those are the longest: one worker would end a minute after the other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST_WORDS := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What must be read and written to the same bytes everywhere.
FILES := tests/unit/test_golden.py tests/unit/artifact/test_range_codec.py

test: $(VENV)/installed
	$(ONE_THREAD) $(BIN)/python -m pytest $(PYTEST_WORDS) $(ARGS)

test-fast: $(VENV)/installed
	$(ONE_THREAD) $(BIN)/python -m pytest $(PYTEST_WORDS) -m "not slow" $(ARGS)

# Parity and old files as other processors compute, and what concerns MLX with the operations of its GPUs.
test-machines: $(VENV)/installed
	$(ONE_THREAD) $(BIN)/python -m tests.instruction_sets $(PYTEST_WORDS) tests/parity $(FILES)
	$(ONE_THREAD) BYTETWIN_MLX_PLAIN=1 $(BIN)/python -m pytest $(PYTEST_WORDS) -k "(mlx or parity or resume) and not mlx_cpu"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/installed
	$(BIN)/bytetwin parity $(SPEC) $(ARGS)

# Stops at a link that leads nowhere.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

prepare: $(NODE)
	$(BIN)/bytetwin prepare $(SPEC_WORDS) --shards $(SHARDS)

preflight: $(NODE)
	$(BIN)/bytetwin preflight $(SPEC_WORDS) $(PREFLIGHT_WORDS)

# Each step does nothing where its work is done, so the same command resumes after an interruption.
h100: prepare
	mkdir -p $(RUN_DIR)
	test -f $(RUN_DIR)/score.json || \
		$(BIN)/bytetwin preflight $(SPEC_WORDS) $(PREFLIGHT_WORDS) --output $(RUN_DIR)/preflight.json
	$(BIN)/bytetwin train $(SPEC_WORDS) --engine torch --ranks $(RANKS) --runs-dir $(RUNS) --run $(RUN) --resume
	$(BIN)/bytetwin record $(RUN_DIR) --output $(RECORDS)/$(RUN) --replace $(RECORD)

data: $(VENV)/installed
	$(BIN)/bytetwin data list
	$(BIN)/bytetwin data verify

bench: $(VENV)/installed
	$(BIN)/python -m tests.bench.mlx_speed $(SCRIPT) $(ARGS)

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis bytetwin.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
