# Everything runs from a virtual environment of its own; nothing else needs to be there but
# Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all check bench update clean

demo: $(READY)      ## train a small language model, analyse it, show what there is to see
	$(BIN)/hallmarks demo

test: $(READY)      ## the whole suite but what is slow
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY)  ## everything, the slow checks too
	$(BIN)/python -m pytest

check: $(READY)     ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)     ## has it become slower? ratios against those stored, in three minutes
	PYTHONPATH=. $(BIN)/python benchmarks/ratios.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hallmarks needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

update:             ## newest versions into constraints.txt, torch excepted
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade torch==2.13.0 --editable '.[dev]'
	(sed '/^[^#]/,$$d' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.new
	mv constraints.new constraints.txt

clean:              ## remove what was built and the demo's store
	rm -rf .venv build *.egg-info hallmarks-demo .ruff_cache .hypothesis .import_linter_cache
