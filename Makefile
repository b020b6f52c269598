# Every target prepares what it needs. The virtual environment .venv holds the pinned packages of requirements.txt and this checkout.
# `make` builds it again when requirements.txt changes. `make clean` removes it.

PYTHON ?= python3
DATASET ?= scenes
DATA_DIR ?=
ARGS ?=

# XLA asks for all temporaries of a program in one piece. By default glibc takes it from the system and gives it back on every call, and a CPU
# spends much of a step on that. With these settings glibc keeps what was freed.
export GLIBC_TUNABLES ?= glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# uv and pip-audit, in an environment of their own.
TOOLS := .venv/tools/bin
LOCK := $(TOOLS)/uv pip compile --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade --quiet \
	--custom-compile-command 'make lock'

# tests/peers compares with these packages. They have exact versions but no hashes, because the files of PyTorch depend on the machine.
# PEERS_ALONE are plain Python. They are installed without their dependencies, which would bring another PyTorch to a machine without a GPU.
PEERS := torch==2.13.0 ai-edge-litert==2.3.0 huggingface_hub==2.4.0 pyyaml==6.0.3 regex==2026.11.15 tokenizers==0.23.3
PEERS_ALONE := torchvision==0.29.2 segmentation_models_pytorch==0.6.0 timm==1.0.31 transformers==5.23.0

.PHONY: help demo benchmarks notebooks test test-all peers check format lock audit clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo 'make TARGET [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv/.ready ## train, evaluate and draw a small DeepLabv3+; DATASET=scenes or camvid (then DATA_DIR=folder), ARGS=more flags
	@$(BIN)/python -m experiments.demo --dataset "$(DATASET)" --data_dir "$(DATA_DIR)" --workdir "runs/demo-$(DATASET)" $(ARGS)

test: .venv/.ready ## run the tests on two processes, without the slow ones; ARGS="-k atrous" narrows them
	@$(BIN)/python -m pytest tests -m "not slow" -n 2 $(ARGS)

benchmarks: .venv/.peers ## measure against the PyTorch peers; ARGS="--parts inference" narrows it
	@$(BIN)/python -m experiments.benchmarks $(ARGS)

notebooks: .venv/.ready ## execute the notebooks in place, trainings included; ARGS=boundaries for one
	@$(BIN)/python -m experiments.notebooks $(ARGS)

test-all: .venv/.ready ## run every test
	@$(BIN)/python -m pytest tests -n 2 $(ARGS)

peers: .venv/.peers ## install the PyTorch peers, which the tests then compare with

check: .venv/.ready ## check format, lint and types
	@$(BIN)/ruff format --check --output-format concise . || { echo 'Not formatted: run `make format`.' >&2; exit 1; }
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/mypy

format: .venv/.ready ## format the code and fix what the linter can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lock: .venv/tools/.ready ## resolve requirements.txt and .ci/tools.txt again, with hashes, for Python 3.11 and later
	@$(LOCK) --extra dev --output-file requirements.txt pyproject.toml
	@$(LOCK) --output-file .ci/tools.txt .ci/tools.in

audit: .venv/.ready ## list the packages' licences, and look the packages up among known vulnerabilities
	@$(BIN)/python .ci/licences.py requirements.txt
	@$(MAKE) --no-print-directory .venv/tools/.ready || { \
		echo 'audit: pip-audit cannot be installed, PyPI cannot be reached; only the licences were looked at' >&2; exit 2; }
	@$(BIN)/python .ci/vulnerabilities.py $(TOOLS)/pip-audit requirements.txt

clean: ## remove the virtual environment, caches and runs of the demo
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist runs/demo-*
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.venv/.packages: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "deeplab_jax needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another: make PYTHON=python3.12 TARGET" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) and the packages of requirements.txt (once; one or two minutes)"
	@$(PYTHON) -m venv --clear .venv
	@# A counter on a terminal, nothing in a log; pip's own warnings and errors go to stderr.
	@total=$$(grep -c '==' requirements.txt); live=$$(test -t 2 && echo 1); \
	{ $(PIP) install --progress-bar off --require-hashes --requirement requirements.txt && touch $@; } | awk -v total="$$total" -v live="$$live" \
		'/^Collecting/ && live { printf "\r  %d of at most %d: %-45.45s", ++n, total, $$2; fflush() } \
		/^Installing/ && live { printf "\r  unpacking %-60s", ""; fflush() } END { if (live) print "" }'
	@test -f $@

.venv/.ready: .venv/.packages pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/tools/.ready: .ci/tools.txt .venv/.packages
	@$(PYTHON) -m venv --clear .venv/tools
	@$(TOOLS)/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes --requirement $<
	@touch $@

.venv/.peers: .venv/.packages Makefile
	@echo "Installing the peers: $(PEERS) $(PEERS_ALONE)"
	@$(PIP) freeze --exclude-editable > .venv/constraints.txt
	@$(PIP) install --quiet --constraint .venv/constraints.txt $(PEERS)
	@$(PIP) install --quiet --no-deps $(PEERS_ALONE)
	@touch $@
