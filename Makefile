# make run: train on the embedded data set.  make test: the whole suite.  Both set up what they need first.
# make test-long: what only waits, for Slurm's time limits and for nodes that are gone.
# make test-slurm24: tests/slurm with Debian 13's Slurm 24.11, in a root directory of its own; as root, minutes.
# make bench BENCH_ARGS="...": measure on this machine, for half an hour, and write docs/performance.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file's tests stay in one process: they share what they launched. More than four only wait for each other's jobs.
# Files start in the order of tests/conftest.py, the longest first.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-long test-slurm24 lint format bench clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/python job/train.py --config configs/quickstart.yaml

test: $(READY)
	$(BIN)/pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-long: $(READY)
	$(BIN)/pytest -m long $(PYTEST_ARGS)

test-slurm24:
	tests/slurm/slurm24.sh $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 job launch  # files are UTF-8 in whatever locale
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py $(BENCH_ARGS)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11: run make PYTHON=python3.11 (or newer)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
