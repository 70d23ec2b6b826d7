# Every target sets up what it needs: on Debian and Ubuntu the system packages too (when root; else it says which).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup check test demo bundle pins clean

setup: $(VENV)/.ready

$(VENV)/.ready: infra/local/setup.sh infra/requirements/dev.txt pyproject.toml
	@PYTHON=$(PYTHON) bash infra/local/setup.sh

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bundle: setup  ## the GPU host's bundle, cached by its content
	@$(BIN)/python -m infra.gpu_host.bundle

test: check
	@$(BIN)/python -m pytest

demo: setup
	@$(BIN)/dumont demo

pins: setup  ## resolve infra/requirements anew from pyproject.toml
	@bash infra/requirements/pin.sh

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
