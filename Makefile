# Each target works alone on a fresh machine with Python 3.11–3.13, and may be run twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
BENCH  := $(VENV)/.installed-bench
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format bench-loop bench-memory clean

# The question, answered on scikit-learn's handwritten digits: four ways to spend the same 32,768 examples.
demo: $(CORE)
	$(BIN)/batchscope compare digits 8x4096 32x1024 128x256 512x64 --seeds 5 \
	    --json demo/digits.json --report demo/digits.html
	@echo "Open demo/digits.html in a browser."

test: $(DEV)
	$(BIN)/python -m pytest

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# examples/s of our loop over a hand-written one, in alternating runs; Lightning and skorch beside them
bench-loop: $(BENCH)
	$(BIN)/python benchmarks/loop.py

# peak resident memory of a run over a hand-written loop's, each in a process of its own
bench-memory: $(BENCH)
	$(BIN)/python benchmarks/memory.py

# A stamp is written last, so that an interrupted installation is done again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(DEV): $(CORE)
	$(PIP) --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	$(PIP) --editable '.[dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
