# make demo: train the quickstart · make test: prove everything · make help: the rest
PYTHON ?= python3.11
BIN := .venv/bin
CONFIG ?= deploy/runs/quickstart.toml
SEEDS ?= 1000
FIRST ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit check format lock clean bench-law bench-toy bench-collapse bench-trl bench-tables
.PHONY: bench-learner bench-head bench-weights bench-beside-trl bench-gpu bench-overlap bench-overhead bench-sampling
.PHONY: simulate simulate-mutants simulate-scale chaos

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/ready ## make .venv from the lock file

.venv/ready: requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Entrostat's lock file is for Python 3.11; install it, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test ! -L .venv || { echo ".venv is a link to another place, which would be emptied: remove the link first"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 0 -r requirements-cpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## train the quickstart policy, live; an earlier run is kept under another name
	$(BIN)/entrostat train $(CONFIG) --keep-earlier

test: setup ## all tests: unit, integration, and the built wheel from outside the tree
	$(BIN)/python -m pytest

unit: setup ## the tests without Ray and vLLM
	$(BIN)/python -m pytest tests/unit

chaos: setup ## break real runs in every way of docs/reliability.md, real engine and all; half an hour on quiet cores
	$(BIN)/python -m tests.chaos

simulate: setup ## whole runs on virtual time, SEEDS=1000 of them, from FIRST=0 on; a failing seed tells how to see it again
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

simulate-mutants: setup ## faults built in on purpose, and how many seeds find each
	$(BIN)/python -m tests.simulation.mutants --seeds $(SEEDS)

simulate-scale: setup ## a thousand actors, ten thousand steps, ten million prompts; docs/scale.json and docs/scale.png
	$(BIN)/python -m tests.simulation.scale_figure

check: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --warnings

format: setup ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-law: setup ## step responses of every control law, 3 minutes
	$(BIN)/python -m benchmarks.step_response

bench-toy: setup ## the AEnt paper's toy MDP, about a quarter of an hour
	$(BIN)/python -m benchmarks.toy_mdp

bench-collapse: setup ## every method on two tasks, hours; goes on where it stopped
	$(BIN)/python -m benchmarks.collapse

bench-trl: setup ## what entropy TRL and our laws hold, ours at several delays too
	$(BIN)/python -m benchmarks.collapse --part tracking

bench-tables: setup ## the comparison's tables and pictures, from the results that are there
	$(BIN)/python -m benchmarks.collapse --only tables

bench-learner: bench-head bench-weights bench-beside-trl bench-gpu ## all of docs/performance.md, two hours

bench-head: setup ## what entropy costs in the head, in time and memory; 20 minutes and 12 GiB of memory
	$(BIN)/python -m benchmarks.head

bench-weights: setup ## what an update of weights costs, in copies of its bytes; needs 5 GiB of memory
	$(BIN)/python -m benchmarks.weights

bench-beside-trl: setup ## a step's time and reward after equal time, beside TRL's trainer; an hour on two quiet cores
	$(BIN)/python -m benchmarks.beside_trl --cores 0,1

bench-overlap: setup ## what asynchrony wins over on-policy, at a GPU's pace and on the quickstart; two hours, mostly waiting
	$(BIN)/python -m benchmarks.overlap

bench-overhead: setup ## what controller, protocol and Ray cost of a step; six minutes
	$(BIN)/python -m benchmarks.overhead

bench-sampling: setup ## groups with mixed results under both ways of drawing prompts; a minute
	$(BIN)/python -m benchmarks.mixed_results

bench-gpu: setup ## head, selection and a learner's step on a GPU; without one the table stays empty
	$(BIN)/python -m benchmarks.gpu

lock: ## resolve requirements-cpu.lock anew
	$(PYTHON) deploy/lock.py

clean: ## remove what was built, not the runs
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
