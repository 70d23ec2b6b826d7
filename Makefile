# Every target sets up what it needs: on Debian and Ubuntu the system packages too (when root; else it says which).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENDOR := .venv-vendor
DEPLOYER := .venv-deploy

SEEDS ?= 2000
SEED ?= 1
MINUTES ?= 45
# What a red run prints after its seed: WITHOUT, FAULTS, CELL, ALSO, STIRRED, STORY, HTTP.
REPLAY := $(foreach word,WITHOUT FAULTS CELL ALSO STIRRED STORY HTTP,$(if $($(word)),$(word)=$($(word))))

.PHONY: setup vendor check test simulate soak demo bundle pins clean deployer test-deployer

setup: $(VENV)/.ready

$(VENV)/.ready: infra/local/setup.sh infra/requirements/dev.txt pyproject.toml
	@PYTHON=$(PYTHON) bash infra/local/setup.sh

vendor: setup $(VENDOR)/.ready  ## the marketplace's own client, for the contract tests

$(VENDOR)/.ready: infra/requirements/vendor.txt
	@$(BIN)/python -m venv --clear $(VENDOR)
	@$(VENDOR)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

deployer: setup $(DEPLOYER)/.ready  ## the environment of `dumont deploy`: $(DEPLOYER)/bin/dumont deploy

$(DEPLOYER)/.ready: infra/requirements/dev.txt infra/requirements/deploy.txt
	@$(BIN)/python -m venv --clear $(DEPLOYER)
	@$(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/requirements/dev.txt
	@$(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/requirements/deploy.txt
	@$(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

test-deployer: deployer
	@$(DEPLOYER)/bin/python -m pytest tests/deploy

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bundle: setup  ## the GPU host's bundle, cached by its content
	@$(BIN)/python -m infra.gpu_host.bundle

test: check vendor bundle
	@$(BIN)/python -m pytest -n 2 --dist loadfile
	@$(MAKE) --no-print-directory simulate

simulate: setup  ## the product in virtual worlds that break: SEEDS=n [SEED=s]; SEEDS=1 SEED=s replays one
	@$(BIN)/python -m tests.simulation SEEDS=$(SEEDS) SEED=$(SEED) $(REPLAY)

soak: setup  ## as many seeds as MINUTES give
	@$(BIN)/python -m tests.simulation SEED=$(SEED) MINUTES=$(MINUTES)

demo: setup
	@$(BIN)/dumont demo

pins: setup  ## resolve infra/requirements anew from pyproject.toml
	@bash infra/requirements/pin.sh

clean:
	rm -rf $(VENV) $(VENDOR) $(DEPLOYER) .cache build dist *.egg-info
