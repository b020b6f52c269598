# Every target prepares what it needs. The virtual environment .venv holds the pinned packages of requirements.txt and this checkout.
# `make` builds it again when requirements.txt changes. `make clean` removes it.

# The newest Python that runs. A name may be found and still refuse, as pyenv's names do for a version that is not chosen.
VERSIONS ?= 3.13 3.12 3.11
PYTHON ?= $(or $(shell for v in $(VERSIONS); do for p in "python$$v" "env PYENV_VERSION=$$v python$$v"; do \
	$$p -c 'import ensurepip, venv' 2>/dev/null && echo "$$p" && exit; done; done),python3)
VENV ?= .venv
DATASET ?= scenes
DATA_DIR ?=
TESTS ?= tests
ARGS ?=

# Ours and the peers run in processes that keep freed memory, as `deeplab_jax/train/allocator.py` sets it for training.
benchmarks: export GLIBC_TUNABLES ?= glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# uv and pip-audit, in an environment of their own.
TOOLS := $(VENV)/tools/bin
LOCK := $(TOOLS)/uv pip compile --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade --quiet \
	--custom-compile-command 'make lock'

# tests/peers compares with these packages. They have exact versions but no hashes, because the files of PyTorch depend on the machine.
# PEERS_ALONE are installed without their dependencies, which would bring another PyTorch to a machine without a GPU. What they need and the other
# lists lack stands behind them: torchmetrics needs lightning-utilities, the part of cityscapesscripts that the tests run needs pyquaternion, and
# keras-hub needs all that follows it.
PEERS := torch==2.13.0 ai-edge-litert==2.3.0 pyyaml==6.0.4 regex==2026.11.15 tokenizers==0.23.3
PEERS_ALONE := torchvision==0.29.2 segmentation_models_pytorch==0.6.0 timm==1.0.31 monai==1.6.1 transformers==5.23.0 \
	torchmetrics==1.9.0 lightning-utilities==0.15.3 cityscapesscripts==2.3.0 pyquaternion==0.9.9 \
	keras==3.15.1 keras-hub==0.32.0 kagglehub==1.0.3 kagglesdk==0.1.38 namex==0.1.0 optree==0.20.0

.PHONY: help demo benchmarks notebooks test test-all peers tpu-compiler check format lock audit clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo 'make TARGET [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.ready ## train, evaluate and draw a small DeepLabv3+; DATASET=scenes or camvid (then DATA_DIR=folder), ARGS=more flags
	@$(BIN)/python -m experiments.demo --dataset "$(DATASET)" --data_dir "$(DATA_DIR)" --workdir "runs/demo-$(DATASET)" $(ARGS)

test: $(VENV)/.ready ## run the tests on two processes, without the slow ones; ARGS="-k atrous" narrows them
	@$(BIN)/python -m pytest $(TESTS) -m "not slow" -n 2 --dist loadfile $(ARGS)

benchmarks: $(VENV)/.peers ## measure against the peers; ARGS="--parts inference" narrows it
	@$(BIN)/python -m experiments.benchmarks $(ARGS)

notebooks: $(VENV)/.ready ## execute the notebooks in place, trainings included; ARGS=boundaries for one
	@$(BIN)/python -m experiments.notebooks $(ARGS)

test-all: $(VENV)/.ready ## run every test
	@$(BIN)/python -m pytest $(TESTS) -n 2 $(ARGS)

peers: $(VENV)/.peers ## install the peers, which the tests then compare with

tpu-compiler: $(VENV)/.tpu ## install what compiles for TPUs without one, which the tests then do

check: $(VENV)/.ready ## check format, lint and types
	@$(BIN)/ruff format --check --output-format concise . || { echo 'Not formatted: run `make format`.' >&2; exit 1; }
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/mypy

format: $(VENV)/.ready ## format the code and fix what the linter can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lock: $(VENV)/tools/.ready ## resolve requirements.txt and .ci/tools.txt again, with hashes, for Python 3.11 and later
	@$(LOCK) --extra dev --extra geo --extra hub --extra keras --extra onnx --extra tiff --output-file requirements.txt pyproject.toml
	@$(LOCK) --output-file .ci/tools.txt .ci/tools.in

audit: $(VENV)/.ready ## list the packages' licences, and look the packages up among known vulnerabilities
	@$(BIN)/python .ci/licences.py requirements.txt
	@$(MAKE) --no-print-directory $(VENV)/tools/.ready || { \
		echo 'audit: pip-audit cannot be installed, PyPI cannot be reached; only the licences were looked at' >&2; exit 2; }
	@$(BIN)/python .ci/vulnerabilities.py $(TOOLS)/pip-audit requirements.txt

clean: ## remove the virtual environment, caches and runs of the demo
	rm -rf .venv .venv-3.* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist runs/demo-*
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.packages: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "deeplab_jax needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another: make PYTHON=python3.12 TARGET" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) and the packages of requirements.txt (once; one or two minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@# A counter on a terminal, nothing in a log; pip's own warnings and errors go to stderr.
	@total=$$(grep -c '==' requirements.txt); live=$$(test -t 2 && echo 1); \
	{ $(PIP) install --progress-bar off --require-hashes --requirement requirements.txt && touch $@; } | awk -v total="$$total" -v live="$$live" \
		'/^Collecting/ && live { printf "\r  %d of at most %d: %-45.45s", ++n, total, $$2; fflush() } \
		/^Installing/ && live { printf "\r  unpacking %-60s", ""; fflush() } END { if (live) print "" }'
	@test -f $@

$(VENV)/.ready: $(VENV)/.packages pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/tools/.ready: .ci/tools.txt $(VENV)/.packages
	@$(PYTHON) -m venv --clear $(VENV)/tools
	@$(TOOLS)/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes --requirement $<
	@touch $@

$(VENV)/.tpu: $(VENV)/.packages
	@$(PIP) freeze --exclude-editable > $(VENV)/constraints.txt
	@$(PIP) install --quiet --constraint $(VENV)/constraints.txt 'jax[tpu]'
	@touch $@

$(VENV)/.peers: $(VENV)/.packages Makefile
	@echo "Installing the peers: $(PEERS) $(PEERS_ALONE)"
	@$(PIP) freeze --exclude-editable > $(VENV)/constraints.txt
	@$(PIP) install --quiet --constraint $(VENV)/constraints.txt $(PEERS)
	@$(PIP) install --quiet --no-deps $(PEERS_ALONE)
	@touch $@
