# Every target makes its own environment first: no variable to set, nothing to activate.
# Another Python: make test PYTHON=python3.12 VENV=.venv312
# The kernels' compilers have environments of their own, .venv-tpu and .venv-cuda.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev
# The newest Python with a tested set, from PATH or from pyenv.
LATEST ?= $(firstword $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python; do \
            $$p -c 'import venv' 2>/dev/null && echo $$p; done))

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
# glibc keeps what is freed: pages that are mapped anew at every call would be timed too.
KEEP_PAGES := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=268435456

.DEFAULT_GOAL := help
.PHONY: help setup train test nightly test-latest prove prove-tpu prove-gpu kernels prove-figures \
        lint bench bench-loop bench-kernels kernel-errors studies results alignment docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Make the environment in .venv

$(READY): setup.cfg pyproject.toml constraints/py311.txt constraints/py312.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("miras_jax needs Python 3.11 or newer, $(PYTHON) is %d.%d: choose one with make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@pins=constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt; \
	if [ -f $$pins ]; then echo "installing the tested set $$pins"; else \
	  echo "no tested set for this Python: installing the newest versions setup.cfg allows"; pins=/dev/null; fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $$pins -e '.[$(EXTRAS)]'
	@touch $@

train: $(READY)  ## Train the quickstart model on text that is already on this machine
	$(BIN)/miras train experiments/quickstart.py

test: $(READY)  ## Run every test
	$(BIN)/python -m pytest

# The kills are at random: another order with MIRAS_KILL_SEED=..., which a failure prints.
nightly: $(READY)  ## Run the tests left for the night: sixty kills, more cases
	$(BIN)/python -m pytest -n 0 -s -m nightly

test-latest:  ## Run every test on the newest Python found, in .venv-latest
	@[ -n "$(LATEST)" ] || { echo "no Python 3.12 found: name one with make test-latest LATEST=..."; exit 1; }
	$(MAKE) test PYTHON=$(LATEST) VENV=.venv-latest

# MIRAS_PROVE_ALL=1 compiles every case instead of those for every change.
prove-tpu:  ## Compile kernels and whole steps for TPUs with the real compiler; needs no TPU
	$(MAKE) prove BACKEND=tpu VENV=.venv-tpu EXTRAS=dev,tpu

prove-gpu:  ## Compile the kernels for GPUs down to machine code; needs no GPU
	$(MAKE) prove BACKEND=gpu VENV=.venv-cuda EXTRAS=dev,cuda

# By row of the zoo, so that a worker compiles all cases of a row in one process.
prove: $(READY)
	$(BIN)/python -m pytest --dist loadgroup $(wildcard tests/*/test_aot_$(BACKEND).py)

# The cases of the tests alone: make kernels FIGURES=--every-time
kernels:  ## Write docs/results/kernels_compiled.md: all cases, hours
	$(MAKE) prove-figures BACKEND=tpu VENV=.venv-tpu EXTRAS=dev,tpu
	$(MAKE) prove-figures BACKEND=gpu VENV=.venv-cuda EXTRAS=dev,cuda

prove-figures: $(READY)
	$(BIN)/python experiments/prove_kernels.py --backend $(BACKEND) $(FIGURES) \
	  --out docs/results/kernels_compiled.md

lint: $(READY)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)  ## Time the memories on this machine
	$(KEEP_PAGES) $(BIN)/python experiments/bench_memory.py --out docs/results/memories.md

bench-generate: $(READY)  ## Time long generations
	$(BIN)/python experiments/bench_generate.py --names yaad gated_deltanet \
	  --out docs/results/generation.md

bench-loop: $(READY)  ## Time the training loop beside its compiled step
	$(BIN)/python experiments/bench_loop.py --out docs/results/loop.md

bench-kernels: $(READY)  ## Time the kernels of this machine's accelerator, or "auto" on its CPU
	$(KEEP_PAGES) $(BIN)/python experiments/bench_kernels.py --out docs/results/kernels.md

kernel-errors: $(READY)  ## Write docs/results/kernel_errors.md: errors against float64
	$(BIN)/python experiments/kernel_errors.py --out docs/results/kernel_errors.md

# A folder with the folders train and valid of text, which two of the studies read.
TEXT ?= data/novels
studies: $(READY)  ## Train and measure what docs/results compares: hours; TEXT=FOLDER
	for study in experiments/studies/*.py; do \
	  $(BIN)/python experiments/run_study.py $$study --text $(TEXT) || exit 1; done
	$(MAKE) results

results: $(READY)  ## Write the studies' pages in docs/results from their records
	$(BIN)/python experiments/study_pages.py
	$(BIN)/python experiments/study_summary.py

alignment: $(READY)  ## Write docs/alignment.md from the code and the tests
	$(BIN)/python docs/alignment.py

docs: $(READY)  ## Run every snippet and command of the README and the guides
	$(BIN)/python -m pytest tests/test_docs.py -m "docs or not docs"

clean:  ## Remove the environments and everything that was built
	rm -rf .venv .venv-latest .venv-tpu .venv-cuda build dist *.egg-info \
	  .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
