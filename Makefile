.DEFAULT_GOAL := help
.PHONY: help setup setup-dev up test test-unit lint format down clean

BIN := .venv/bin

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

test: setup-dev ## every tier that runs here, the real engine included
	@$(BIN)/python -m pytest tests

test-unit: setup-dev ## the tier of milliseconds
	@$(BIN)/python -m pytest tests/unit

lint: setup-dev ## ruff, strict types, import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup-dev ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:          ## remove the environment; state under var/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
