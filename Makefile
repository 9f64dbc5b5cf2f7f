# SPDX-License-Identifier: BSD-3-Clause
# make demo | test | check | clean: each makes what it needs from a bare clone.
# ARGS="..." goes to the program that runs; PYTHON=... chooses the interpreter of .venv.

VENV := .venv
BIN := $(VENV)/bin
export PYTHON

.PHONY: help demo test check clean

help:
	@echo "make demo    the whole system on a simulated camera"
	@echo "make test    all tests"
	@echo "make check   format, lint, types, layers"
	@echo "make clean   removes .venv, build and all caches"

demo: $(VENV)/.installed-demo
	@$(BIN)/python -m ppdaemon.demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: setup.py tools/bootstrap.sh
	@tools/bootstrap.sh $*
