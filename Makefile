# Each target sets up its own virtual environment on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
# So many processes share the test files; the tests of one file run in one process.
TEST_PROCESSES ?= 2
BIN = .venv/bin

.PHONY: install demo demo-progressive serve test check format bench efficiency campaign clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# DEMO="--candidates 40" shortens it; the results are kept in demo-results and found there by the next run.
demo: install
	$(BIN)/factor-search demo $(DEMO)

# The same to 8,192 tokens, by all stages of a plan.
demo-progressive: install
	$(BIN)/factor-search demo --progressive $(DEMO)

# SERVE="--port 9000 --database postgresql://..." changes it; --help of the command says what else there is.
serve: install
	$(BIN)/factor-search serve $(SERVE)

test: install
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.overhead
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.service_overhead
	$(BIN)/python -m bench.stub_load
	$(BIN)/python -m bench.stub_load --postgresql
	$(BIN)/python -m bench.projection
	$(BIN)/python -m bench.dashboard
	$(BIN)/python -m bench.startup

# EFFICIENCY="--jobs 4" changes it. Hours: ten thousand evaluations a model; a second run finds them in the cache.
efficiency: install
	$(BIN)/python -m bench.search_efficiency $(EFFICIENCY)
	$(BIN)/python -m bench.racing

# Fifty kills of a coordinator, and six in the midst of plans: half an hour.
campaign: install
	$(BIN)/python -m bench.kill_coordinator
	$(BIN)/python -m bench.kill_plan

clean:
	rm -rf .venv demo-results demo-progressive-results build *.egg-info
