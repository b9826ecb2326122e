# What can be done with a clone: make help.
PYTHON ?= python3
VENV := .venv/bin

PIP := $(VENV)/python -m pip --disable-pip-version-check --no-input
TORCH ?= 2.13.0
FUZZ ?= 5000
MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test outputs fuzz check-data portable portable-fast lint format docs peers clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 23
	@echo
	@echo 'Options of setup: PYTHON=python3.12, TORCH=2.12.0 (versions; after make clean), MAX_JOBS=1 (compilers at once, 1.5 GB each)'

setup: .venv/complete  ## Make .venv with everything in it; can be interrupted and run again

# torch-scatter and torch-cluster come as sources only, compiled against the installed torch in 10
# minutes on 2 cores: in parallel and without debugging symbols, which halve the time.
EXTENSIONS := 'torch-scatter>=2.1.2,<3' 'torch-cluster>=1.6.3,<2'
BUILD := DIST_EXTRA_CONFIG=$(CURDIR)/.venv/build.cfg CFLAGS="$$CFLAGS -g0" $(PIP) install --no-build-isolation

.venv/complete: pyproject.toml
	test -x $(VENV)/pip || $(PYTHON) -m venv --clear .venv
	$(PIP) install torch==$(TORCH) 'setuptools>=77' wheel scipy
	printf '[build_ext]\nparallel = $(MAX_JOBS)\n' > .venv/build.cfg
	$(BUILD) $(EXTENSIONS)
	# pip keeps wheels that it has built, also those for another torch.
	$(VENV)/python -c 'import torch_scatter, torch_cluster' \
	  || $(BUILD) --no-deps --no-cache-dir --force-reinstall $(EXTENSIONS)
	$(PIP) install --no-build-isolation --editable '.[dev]'
	touch $@

demo: setup  ## Train PaiNN on the data set that comes along and predict some dipoles (6 minutes)
	@$(VENV)/python experiments/quickstart.py

test: lint  ## Lint, types and the tests of the code
	$(VENV)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup -m 'not committed_data'

outputs: setup  ## Write into README, docs/ and notebooks what their examples print now
	DIPOLEGNN_REWRITE=1 $(VENV)/python -m pytest tests/test_readme.py tests/test_notebooks.py

fuzz: setup  ## The readers with 5,000 damaged files of each kind (FUZZ=500 for fewer)
	DIPOLEGNN_FUZZ=$(FUZZ) $(VENV)/python -m pytest -n auto --maxprocesses 8 tests/molecules/test_fuzz.py

check-data: setup  ## Check the data sets in the repository
	$(VENV)/python -m pytest -m committed_data

portable: setup  ## The numerical tests as other processors and numbers of threads compute
	@.ci/portable

portable-fast: setup  ## A selection of them
	@.ci/portable --fast

lint: setup  ## Lint and types alone
	$(VENV)/python -m ruff check
	$(VENV)/python -m ruff format --check
	$(VENV)/python -m mypy

format: setup  ## Sort imports, put right what the linter can, format
	$(VENV)/python -m ruff check --fix
	$(VENV)/python -m ruff format

docs: setup  ## Build the documentation in site/; needs no network
	NO_MKDOCS_2_WARNING=1 $(VENV)/python -m mkdocs build --strict

# An environment of its own on top of .venv, whose torch and package it sees through a .pth file.
# Without dependencies, because schnetpack asks for a sympy that torch cannot use; those that
# importing it needs and .venv lacks are named.
PEERS := 'schnetpack==2.1.1' 'dirsync>=2.2,<3' 'fasteners>=0.19,<1' 'matscipy>=1.1,<2' \
	'omegaconf>=2.3,<3' 'torch-ema>=0.3,<1'
SITE = import sysconfig; print(sysconfig.get_path("purelib"), end="")

peers: setup  ## Install schnetpack, which the parity tests compare with, in .venv-peers
	@test -e .venv-peers/complete || { set -e; \
	  echo 'peers: making .venv-peers with schnetpack'; \
	  $(VENV)/python -m venv --clear .venv-peers; \
	  echo "import site; site.addsitedir('$$($(VENV)/python -c '$(SITE)')')" \
	    > "$$(.venv-peers/bin/python -c '$(SITE)')/on_top_of_venv.pth"; \
	  .venv-peers/bin/python -m pip install --quiet --no-deps $(PEERS); \
	  touch .venv-peers/complete; }
	@echo 'peers: .venv-peers is complete'

clean:  ## Remove both environments and caches
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache dipolegnn.egg-info site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
