# make train and make test do all their own set-up; each makes .venv where it is missing or stale.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
CONFIG ?= configs/shakespeare_char.py
WORKDIR ?= runs/shakespeare_char
JOBS ?= 2

# A stamp carries the hash of what it was made from, so editing a requirement makes it stale
# and merely touching the file does not.
HASH := $(shell cat requirements.txt | cksum | cut -d' ' -f1)
DEV_HASH := $(shell cat requirements.txt requirements-prepare.txt requirements-plot.txt requirements-context.txt \
    requirements-convert.txt requirements-hf.txt requirements-dev.txt | cksum | cut -d' ' -f1)
BASE_STAMP := $(VENV)/.base-$(HASH)
DEV_STAMP := $(VENV)/.dev-$(DEV_HASH)

.PHONY: help setup setup-dev train test test-slow lint format clean

help:
	@echo 'make train      set up, then train a character model on tiny Shakespeare (CONFIG=, WORKDIR=)'
	@echo 'make test       set up, then run the quick tests (JOBS=2)'
	@echo 'make test-slow  the tests that take minutes'
	@echo 'make lint       ruff check and ruff format --check'
	@echo 'make format     let ruff mend what it can'
	@echo 'make setup      only make .venv with requirements.txt'
	@echo 'make clean      remove .venv and caches; runs/ stays'

setup: $(BASE_STAMP)
setup-dev: $(DEV_STAMP)

$(RUN):
	@test -n "$(PYTHON)" || { echo 'make: no Python >= 3.11 found. Try make setup PYTHON=/path/to/python3.11.' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BASE_STAMP): | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@rm -f $(VENV)/.base-*
	@touch $@

$(DEV_STAMP): | $(BASE_STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@rm -f $(VENV)/.dev-*
	@touch $@

train: $(BASE_STAMP)
	$(RUN) -m jaxllm.train --config=$(CONFIG) --workdir=$(WORKDIR)

test: $(DEV_STAMP)
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n $(JOBS)

test-slow: $(DEV_STAMP)
	JAX_PLATFORMS=cpu $(RUN) -m pytest -m slow

lint: $(DEV_STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(DEV_STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
