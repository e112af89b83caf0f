# Each target does all of its own set-up: Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Everything that `make demo` prepares and records; delete the folder to begin anew.
DEMO_HOME ?= $(CURDIR)/.cornerstone

.PHONY: demo test test-faults lint install benchmark benchmark-data clean

demo: install
	@CORNERSTONE_HOME="$(DEMO_HOME)" PATH="$(CURDIR)/$(BIN):$$PATH" bash ray_jobs/demo.sh $(ARGS)

test: install lint
	$(BIN)/python -m pytest

test-faults: install
	$(BIN)/python -m pytest -m faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.step

benchmark-data: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.data_plane $(ARGS)

install: $(VENV)/.installed

# torch goes first: where a CPU build is at hand it is taken, and nothing else pulls another one in.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info platform/*.egg-info
