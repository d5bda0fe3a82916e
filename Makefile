# `make` lists the targets. Everything happens in $(VENV), which is made when needed and renewed when
# pyproject.toml or the file of constraints change.
#   make test PYTHON=python3.12 VENV=/tmp/venv
#   make test VENV=/tmp/lowest CONSTRAINTS=constraints-lowest.txt

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANTISED := $(VENV)/.installed-quantised
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help setup quantised quickstart test test-long test-versions test-all support check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the environment

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[quickstart,dev]'
	@touch $@

quantised: $(QUANTISED) ## add bitsandbytes and torchao, so that the tests of quantised bases run

$(QUANTISED): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[quantised]'
	@touch $@

quickstart: $(STAMP) ## train an adapter, evaluate it, print the table; offline
	$(OFFLINE) $(BIN)/adaptrain train recipe=quickstart
	$(OFFLINE) $(BIN)/adaptrain eval "$$($(BIN)/adaptrain show recipe=quickstart | sed -n 's/^# train writes to //p')"
	$(BIN)/adaptrain table outputs/

test: $(STAMP) ## run the test suite, without a network
	$(OFFLINE) $(BIN)/python -m pytest -n 2 -m "not long" $(PYTEST_ARGS)

test-long: $(STAMP) ## run the rest of it: pairs of method and model of which `make test` runs some
	$(OFFLINE) $(BIN)/python -m pytest -n 2 -m long $(PYTEST_ARGS)

test-versions: $(STAMP) ## run the test suite with the lowest and the newest versions that are supported
	@.ci/newer $(BIN)/python
	$(MAKE) --no-print-directory test VENV=$(VENV)/lowest CONSTRAINTS=constraints-lowest.txt
	$(MAKE) --no-print-directory test VENV=$(VENV)/newest CONSTRAINTS=constraints-newest.txt

test-all: $(STAMP) ## what CI runs: style, types, tests, and the built wheel in an empty environment
	PYTHON=$(PYTHON) VENV=$(VENV) .ci/run

support: $(STAMP) ## write docs/support.md anew, from the tables
	$(BIN)/python -c 'from adaptrain.reporting.support import page; print(page(), end="")' > docs/support.md

check: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP) ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what tools leave behind; runs stay
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
