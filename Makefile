# Everything here works on a fresh machine with Python >= 3.11 and pip: each target first makes the virtual environment.
# Variables: PY (the Python to build it with), VENV (where), CONSTRAINTS (empty: the newest versions), DEMO (the demo's folder).

VENV ?= .venv
CONSTRAINTS ?= -c constraints.txt
PY ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest

# What touches the interfaces of the dependencies: files, models, adapters, the command line, searches, solvers, figures, doctests.
# The rest of the suite is arithmetic on tensors, and torch is the same in both environments.
INTERFACES := src tests/app tests/evaluation tests/report tests/search tests/weights $(wildcard tests/test_*.py) \
	$(patsubst %,tests/fitting/test_%.py,epo scalarization on_data) \
	$(patsubst %,tests/end_to_end/test_%.py,adapters architectures cli lora_experts python report)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-lowest test-lowest-quick test-app lint format types docs peers bench claims claims-quick clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

PIP := $(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS)
FAILED = { printf '%s\n' "The installation failed. The exact versions of constraints.txt may not suit this machine;" \
	"  make $(MAKECMDGOALS) CONSTRAINTS=   takes the newest versions" \
	"  PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU builds> make $(MAKECMDGOALS)   takes its small build for the CPU" >&2; exit 1; }

$(BIN)/python:
	@test -n "$(PY)" || { echo "No Python >= 3.11 with venv and pip found; name one: make PY=/path/to/python3.11" >&2; exit 1; }
	@echo "Making the virtual environment $(VENV) (once, some seconds)"
	@$(PY) -m venv $(VENV)

# The program may be there already, as the README installs it: then nothing is installed again.
$(BIN)/paretomerge: pyproject.toml | $(BIN)/python
	@echo "Installing paretomerge into $(VENV) (once; minutes, as PyTorch is large)"
	@$(PIP) -e '.[app,lora]' || $(FAILED)
	@touch $@

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing paretomerge and what its tests need into $(VENV) (once; minutes, as PyTorch is large)"
	@$(PIP) -e '.[dev]' || $(FAILED)
	@touch $(BIN)/paretomerge $@

DEMO ?= paretomerge-demo

demo: $(BIN)/paretomerge  ## run the whole job on the models and data in the package; a demo that is there is made anew (DEMO: its folder)
	$(BIN)/paretomerge demo --overwrite --output $(DEMO)

test: $(READY)  ## the test suite, without the slow tests
	$(BIN)/python -m pytest -n 2

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	@echo "Installing the lowest versions into $(LOWEST) (once; minutes)"
	test -x $(LOWEST)/bin/python || $(PY) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q -c constraints-lowest.txt -e '.[lora]' \
		pytest pytest-xdist hypothesis
	@touch $@

test-lowest: $(LOWEST)/.ready  ## the test suite with the lowest versions that pyproject.toml allows, in an environment of its own
	$(LOWEST)/bin/python -m pytest -n 2

test-lowest-quick: $(LOWEST)/.ready  ## of it, what touches the interfaces of the dependencies
	$(LOWEST)/bin/python -m pytest -n 2 $(INTERFACES)

test-slow: $(READY)  ## the slow tests alone
	$(BIN)/python -m pytest -m slow

test-app: $(READY)  ## the explorer page in a real browser; installs chromium if it may
	@.ci/chromium
	$(BIN)/python -m pytest -m app tests/app

lint: $(READY)  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy on src
	$(BIN)/mypy

docs: $(READY)  ## the documentation, as a site in build/site; warnings are errors
	@echo "Installing what builds the documentation (once), then building it: about a minute"
	@$(PIP) -q -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

peers:  ## build the other tools, each in an environment of its own, that tests and benchmarks compare with
	bash benchmarks/peers/build.sh

bench: $(READY) peers  ## speed and memory beside the peers
	$(BIN)/python benchmarks/merge_speed.py

claims: $(READY)  ## measure the papers' claims on tasks that run offline: docs/results.md (the first time it trains, too)
	$(BIN)/python -m benchmarks.claims.run

claims-quick: $(READY)  ## the same with few inputs, few steps and one seed: whether it runs, no evidence
	$(BIN)/python -m benchmarks.claims.run --quick

clean:  ## remove the environment, caches and builds
	rm -rf $(VENV) $(LOWEST) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
