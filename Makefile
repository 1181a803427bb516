# Everything runs from a virtual environment of its own; nothing else needs to be there but
# Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo study examples test test-all check docs pages bench gpu-check update clean

demo: $(READY)      ## train a small language model, analyse it, show what there is to see
	$(BIN)/hallmarks demo

study: $(READY)     ## train and analyse small networks over momentum and weight decay; print the table
	$(BIN)/hallmarks sweep momentum-weight-decay --store hallmarks-study --executor local

examples: $(READY)  ## the checkpoints and the store that the pages ask about, in the folder `examples`
	PYTHONPATH=. $(BIN)/python -m docs.examples examples

# Three processes, however many cores: one begins with all tests that start Ray (tests/conftest.py), which
# mostly wait, beside two that mostly compute.
test: $(READY)      ## the whole suite but what is slow
	$(BIN)/python -m pytest -m "not slow" --numprocesses 3

test-all: $(READY)  ## everything, the slow checks too, one after the other: some take a machine for themselves
	$(BIN)/python -m pytest

check: $(READY)     ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The site's pages lie as they lie here, so that a link means the same in both.
docs: $(READY)      ## the pages as a site, in build/site
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	rm -rf build/pages && mkdir -p build/pages/benchmarks
	ln -s $(addprefix $(CURDIR)/,README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE CITATION.cff \
		Dockerfile docs infra) build/pages
	ln -s $(CURDIR)/benchmarks/results build/pages/benchmarks
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: $(READY)     ## what the pages hold that is made: generated pages, and what executed blocks print
	PYTHONPATH=. $(BIN)/python -m docs.write

bench: $(READY)     ## has it become slower? ratios against those stored, in three minutes
	PYTHONPATH=. $(BIN)/python benchmarks/ratios.py

# On a bare machine with a GPU, in four minutes: the Python that has torch, and what pipeline/execute/work
# needs (numpy, safetensors, threadpoolctl, xxhash; pytest, pytest-timeout and hypothesis for the tests; obstore,
# duckdb and scikit-learn for those of trainings).
# Warnings of other versions of these are no errors here.
GPU_PYTHON ?= python3
GPU_OPTIONS ?=

gpu-check:          ## the GPU's tests and its rate against the bus, without an installation
	$(GPU_PYTHON) -m pytest -m gpu -W default tests/test_device.py tests/test_trainings_on_gpu.py
	$(GPU_PYTHON) -m benchmarks.device $(GPU_OPTIONS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hallmarks needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

update:             ## newest versions into constraints.txt, torch excepted
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade torch==2.13.0 --editable '.[dev,docs]'
	(sed '/^[^#]/,$$d' constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.new
	mv constraints.new constraints.txt

clean:              ## remove what was built and the demo's store
	rm -rf .venv build *.egg-info hallmarks-demo hallmarks-study examples .ruff_cache .hypothesis .import_linter_cache
