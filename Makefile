# Every target makes its own environment first: no variable to set, nothing to activate.
# Another Python: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV   ?= .venv
# The newest Python with a tested set, from PATH or from pyenv.
LATEST ?= $(firstword $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python; do \
            $$p -c 'import venv' 2>/dev/null && echo $$p; done))

BIN   := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-latest lint bench alignment docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Make the environment in .venv

$(READY): setup.cfg pyproject.toml constraints/py311.txt constraints/py312.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("miras_jax needs Python 3.11 or newer, $(PYTHON) is %d.%d: choose one with make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@pins=constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt; \
	if [ -f $$pins ]; then echo "installing the tested set $$pins"; else \
	  echo "no tested set for this Python: installing the newest versions setup.cfg allows"; pins=/dev/null; fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $$pins -e '.[dev]'
	@touch $@

train: $(READY)  ## Train the quickstart model on text that is already on this machine
	$(BIN)/miras train experiments/quickstart.py

test: $(READY)  ## Run every test
	$(BIN)/python -m pytest

test-latest:  ## Run every test on the newest Python found, in .venv-latest
	@[ -n "$(LATEST)" ] || { echo "no Python 3.12 found: name one with make test-latest LATEST=..."; exit 1; }
	$(MAKE) test PYTHON=$(LATEST) VENV=.venv-latest

lint: $(READY)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)  ## Time the memories on this machine
	@# glibc keeps what is freed: pages that are mapped anew at every call would be timed too.
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456 \
	  $(BIN)/python experiments/bench_memory.py --out docs/results/memories.md

alignment: $(READY)  ## Write docs/alignment.md from the code and the tests
	$(BIN)/python docs/alignment.py

docs: $(READY)  ## Run every snippet of the README and the guides
	$(BIN)/python -m pytest tests/test_docs.py

clean:  ## Remove the environments and everything that was built
	rm -rf .venv .venv-latest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
