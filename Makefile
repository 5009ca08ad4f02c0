.DEFAULT_GOAL := help
.PHONY: help setup setup-dev up walkthrough samples test test-failed test-unit test-slow test-cluster lint format down client-wheel demo-poison gpu-check clean

BIN := .venv/bin
BASE := smollm2-135m-instruct
# the process with the engine mostly waits for it
WORKERS = $(shell expr $$(nproc) + 1)
# half a minute on a PostgreSQL server that the tests start, and everything that keeps metadata
ON_POSTGRESQL := $(addprefix tests/unit/,service/registry/test_migration.py service/access/test_refusals.py \
	service/files/test_accessible.py trainer/runs/test_database.py)
ALL_ON_POSTGRESQL := $(addprefix tests/unit/service/,registry access files knowledge usage batches datasets costs) \
	$(addprefix tests/unit/trainer/,runs reviews webhook tracking)

help:           ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup:          ## make .venv with the engine that fits this machine
	@deploy/setup.sh

setup-dev:      ## the same, with what tests and linters need
	@deploy/setup.sh dev

up: setup       ## engine, gateway and two sample adapters; Ctrl-C stops everything
	@exec $(BIN)/hatrack up

down:           ## end what a crash left running
	@$(BIN)/hatrack down

walkthrough: setup ## the example: data report, advice, training, verdict, live, facts that change, cost; STEPS="policy fence" for some
	@exec $(BIN)/python deploy/walkthrough.py $(STEPS)

# before the tests, which keep all cores busy: beside them it takes three times as long
samples: setup-dev
	@$(BIN)/python -m trainer.base_model --source $(BASE) --dest var/base >/dev/null
	@$(BIN)/python -m trainer.samples --base var/base/$(BASE) --out var/samples >/dev/null

# one process has the engine and all tests that need one, while the others run unit tests
test: samples ## unit tests, and beside them one real engine for all that need one (23 minutes on two slow cores without AVX-512, less on others; and 3 to 5 before for the voices)
	@$(BIN)/python -m pytest tests/unit tests/integration -m "not slow" -n $(WORKERS) --dist loadscope
	@$(BIN)/python -m pytest $(ON_POSTGRESQL) -m "not slow" --database postgresql

test-failed: samples ## what failed in the last `make test`, once more and alone
	@$(BIN)/python -m pytest tests/unit tests/integration -m "not slow" --last-failed --last-failed-no-failures none
	@$(BIN)/python -m pytest $(ON_POSTGRESQL) -m "not slow" --database postgresql

test-unit: setup-dev ## the tier of milliseconds
	@$(BIN)/python -m pytest tests/unit -m "not slow" -n logical --dist worksteal

test-slow: samples ## the rest: crashes, trainings and their verdicts, architectures, hostile adapters, the console in a browser (over an hour on two cores, over two on slow ones)
	@$(BIN)/python -m pytest tests/unit -m slow -n logical --dist worksteal
	@$(BIN)/python -m pytest tests/integration tests/crash -m slow
	@$(BIN)/python -m pytest $(ALL_ON_POSTGRESQL) --database postgresql -n logical --dist worksteal

# Ray has an environment of its own: nothing else needs it
INTO_CLUSTER := .venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check --no-deps
test-cluster: setup-dev ## agents on Ray Serve, on loopback with stubs for engines (.venv-cluster gets Ray)
	@[ -x .venv-cluster/bin/python ] || $(BIN)/python -m venv .venv-cluster
	@$(INTO_CLUSTER) --require-hashes -r deploy/ray/requirements.txt
	@$(INTO_CLUSTER) -e .
	@$(BIN)/python -m pytest tests/cluster

lint: setup-dev ## ruff, strict types, import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup-dev ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

demo-poison: samples ## a poisoned adapter in a plain vLLM and in Hatrack, side by side: who still answers?
	@exec $(BIN)/python -m loadtests.poison

gpu-check: setup ## on a machine with a GPU: voices, proof, containment, NF4 memory, LoRA beside plain vLLM; LARGE=DIR for a base of 4B; ends in a report
	@exec $(BIN)/python -m loadtests.gpu_check $(if $(LARGE),--large $(LARGE))

client-wheel:   ## dist/hatrack_client-*.whl: the Python client and the command alone, import name hatrack
	@$(or $(wildcard $(BIN)/python),python3) -m pip --quiet wheel --no-deps --wheel-dir dist deploy/client && ls dist/hatrack_client-*.whl

clean:          ## remove the environment; state under var/ stays
	rm -rf .venv .venv-cluster .mypy_cache .ruff_cache .pytest_cache
