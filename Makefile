# Every target creates the environment if needed: only Python 3.11 or newer and make are required.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Prepared data, checkpoints and records of `make demo`; delete the folder to start from the beginning.
DEMO_HOME ?= $(CURDIR)/.cornerstone

.PHONY: demo dashboards test test-quick test-gpu test-faults lint install benchmark benchmark-data clean

demo: install
	@CORNERSTONE_HOME="$(DEMO_HOME)" PATH="$(CURDIR)/$(BIN):$$PATH" bash ray_jobs/demo.sh $(ARGS)

# Live metrics, in a second terminal: Prometheus, and Grafana if it is installed, for the Ray of this machine (`make demo`'s too).
dashboards: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" cornerstone dashboards $(ARGS)

# Everything but `test-faults` and `test-gpu`: about 15 minutes on 2 cores. Two processes run the tests without Ray; only one
# can hold the cluster of the others.
WITHOUT_RAY := not ray and not faults and not gpu
IN_TWO_PROCESSES = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: install lint
	$(IN_TWO_PROCESSES) -m '$(WITHOUT_RAY)'
	$(BIN)/python -m pytest -m 'ray and not faults and not gpu'

# What needs neither Ray nor a GPU and is not slow: about 3 minutes on 2 cores.
test-quick: install
	$(IN_TWO_PROCESSES) -m '$(WITHOUT_RAY) and not slow'

# Without a GPU the tests run on the CPU, and those of the GPU are skipped with a reason.
test-gpu: install
	$(BIN)/python -m pytest -m gpu

# Kills processes and resumes, grows and shrinks a cluster, scrapes metrics: about 30 minutes.
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

# torch is installed first: if the index offers a CPU build, it is kept, and no other dependency pulls in a CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cornerstone needs Python 3.11 or newer. Name one: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m cornerstone.import_hook
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info platform/*.egg-info
