# SPDX-License-Identifier: BSD-3-Clause
# make demo | playground | test | slow | slow-ml | quick | bench | check | doc | install | uninstall | clean: each makes what it needs from a bare clone.
# ARGS="..." goes to the program that runs; PYTHON=... chooses the interpreter of .venv.

VENV := .venv
BIN := $(VENV)/bin
export PYTHON
# Where it is set, each daemon of a test would compile the whole package, and each worker of pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo playground test slow slow-ml quick bench check doc install uninstall clean

help:
	@echo "make demo    the whole system on a simulated camera"
	@echo "make playground  the same until Ctrl-C, with a visit every 40 s, to try all commands on"
	@echo "make test    all tests but the slow ones"
	@echo "make slow    the slow tests"
	@echo "make slow-ml the tests with torch and others, in .venv-ml (several GB)"
	@echo "make quick   the tests that start no process and need no LSST code"
	@echo "make bench   all benches with quick settings, eleven minutes on two idle cores: goals, and ratios"
	@echo "             worse than those of tools/baseline.json"
	@echo "make check   format, lint, types, layers"
	@echo "make doc     the documentation as a site, in build/doc"
	@echo "make install and make uninstall, as root: programs in /opt, units, man pages, configuration"
	@echo "             PREFIX=/opt/ppdaemon DESTDIR= EXTRAS=demo,postgres PIPFLAGS=..."
	@echo "make clean   removes .venv, build and all caches"

demo: $(VENV)/.installed-demo
	@$(BIN)/python -m ppdaemon.demo $(ARGS)

playground: $(VENV)/.installed-demo
	@$(BIN)/python -m ppdaemon.demo --stay $(ARGS)

PYTEST := $(BIN)/python -m pytest -n 4 --dist worksteal
# Of tests that wait for nothing, more processes than cores only import everything once more: 2 to 5 s each.
PER_CORE := -n logical --maxprocesses 8

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not ml" $(ARGS)

slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not ml" $(ARGS)

slow-ml: .venv-ml/.installed-ml
	.venv-ml/bin/python -m pytest -m ml tests/ml $(ARGS)

quick: $(VENV)/.installed-test
	$(PYTEST) $(PER_CORE) -m "not slow" --without-lsst tests/unit $(ARGS)

bench: $(VENV)/.installed-test
	@$(BIN)/python tools/bench_all.py $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

doc: $(VENV)/.installed-doc
	$(BIN)/python -m sphinx -W --keep-going -n -q -d build/doctrees doc build/doc $(ARGS)
	@echo "see build/doc/index.html"

# PREFIX, DESTDIR, EXTRAS and PIPFLAGS of the command line are in its environment.
install uninstall:
	@tools/install.sh $@

clean:
	rm -rf $(VENV) .venv-ml build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-ml/.installed-ml: setup.py tools/bootstrap.sh
	@tools/bootstrap.sh ml

$(VENV)/.installed-%: setup.py tools/bootstrap.sh
	@tools/bootstrap.sh $*
