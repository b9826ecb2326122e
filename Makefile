# What can be done with a clone: make help.
PYTHON ?= python3
VENV := .venv/bin

# Variables given on the command line (TORCH, MAX_JOBS) reach the set-up as environment variables.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check-data portable portable-fast lint format docs peers clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 23
	@echo
	@echo 'Set-up options: PYTHON=python3.12 (which Python), TORCH=2.13.0 (which torch), MAX_JOBS=1 (compilers at once)'

setup:  ## Make .venv with everything in it; can be interrupted and run again
	@$(PYTHON) .ci/setup_env.py

demo: setup  ## Train PaiNN on the data set that comes along and predict some dipoles (6 minutes)
	@$(VENV)/python experiments/quickstart.py

test: lint  ## Lint, types and the tests of the code
	$(VENV)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup -m 'not committed_data'

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

clean:  ## Remove both environments, caches and what PyG made out of the data sets
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache dipolegnn.egg-info site
	rm -rf datasets/*/processed
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
