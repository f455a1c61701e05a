# Each command sets up what it needs, in virtual environments below this folder. A bare `make` prints what there is.

PYTHON ?= python3
VENV ?= .venv
# The tests take this part of the rounds and cases that the full sizes have; see tests/support/rounds.py.
PERSISTEDSTATE_SHARE ?= 0.05
PERSISTEDSTATE_CASES ?= $(PERSISTEDSTATE_SHARE)
export PYTHON PERSISTEDSTATE_SHARE PERSISTEDSTATE_CASES
# Tests start hundreds of processes: they shall not all compile the same code.
unexport PYTHONDONTWRITEBYTECODE

SET_UP = .ci/venv $(VENV) -e . --group dev

.PHONY: help
help:
	@echo 'make demo      a script is killed, started again, interrupted, and goes on, before your eyes'
	@echo 'make test      the tests in their quick sizes: about 3 minutes on 2 cores'
	@echo 'make check     lint, format and types'
	@echo 'make bench     measures everything and writes benchmarks/results/: a few minutes, on a quiet machine'
	@echo 'make campaign  the random tests in their nightly sizes: hours'
	@echo
	@echo 'ARGS goes to what is run:     make test ARGS="-k transaction"    make bench ARGS=--quick'
	@echo 'the tests in their full size: make test PERSISTEDSTATE_SHARE=1'
	@echo 'another interpreter:          make test PYTHON=python3.13 VENV=.venvs/3.13'

.PHONY: demo
demo: VENV = .venvs/demo
demo:
	@.ci/venv $(VENV) .
	@$(VENV)/bin/persistedstate demo

.PHONY: test
test:
	@$(SET_UP)
	@echo 'The tests at $(PERSISTEDSTATE_SHARE) of their full size; 0.05 takes about 3 minutes on 2 cores, 1 takes 10 to 16.'
	@$(VENV)/bin/python -m pytest -n auto $(ARGS)

.PHONY: campaign
campaign: PERSISTEDSTATE_CASES = 1
campaign:
	@$(SET_UP)
	@echo 'The nightly sizes of the random tests: this takes hours.'
	@$(VENV)/bin/python -m pytest -n auto -m campaign $(ARGS)

.PHONY: check
check:
	@$(SET_UP)
	@$(VENV)/bin/python -m ruff check
	@$(VENV)/bin/python -m ruff format --diff
	@$(VENV)/bin/python -m mypy

.PHONY: bench
bench:
	@$(PYTHON) benchmarks/bench.py $(ARGS)
