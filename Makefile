# One command a job. Needs Python >= 3.11 with pip, and make; everything else goes into .venv on first use.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
SOURCES := pyproject.toml constraints.txt
TESTS := -m "not slow and not gpu"

OLDEST := .venv-oldest
PYTHON_OLDEST ?= $(PYTHON)
TORCH_OLDEST ?= $(shell sed -n 's/^torch==//p' constraints-oldest.txt)

LATEST := .venv-latest
PYTHON_LATEST ?= $(shell for python in python3.13 python3.12 $(HOME)/.pyenv/versions/3.1[23].*/bin/python; do \
	"$$python" -c '' 2>/dev/null && { command -v "$$python"; break; }; done)

# One process a core; threads on top would only make them wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help demo check-dist check-site test test-slow coverage test-faults lint docs audit test-oldest test-latest test-tutorials clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-run ## train on counts that ship with Scanpy, compare with PCA, write demo/
	$(BIN)/scr2mae demo --force

test: $(VENV)/.stamp-test ## run the tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(TESTS)

test-slow: $(VENV)/.stamp-test ## run the tests that take more than ten seconds each
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu"

coverage: $(VENV)/.stamp-test ## run the tests and measure which branches they take, all but those of extra
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(TESTS) --cov --cov-report=
	$(BIN)/coverage report
	$(BIN)/coverage json -q -o .coverage.json
	$(BIN)/python tests/branches.py .coverage.json --at-least 95

test-faults: $(VENV)/.stamp-test ## kill writers, fill disks, train on hard counts: the long forms, with their tables
	$(ONE_THREAD) $(BIN)/python benchmarks/faults.py --rounds 56
	$(ONE_THREAD) $(BIN)/python benchmarks/numerics.py --steps 10000

lint: $(VENV)/.stamp-lint ## check style, types, import layers, spelling and wording
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python docs/check_style.py

check-site: ## look at every page of the built site in Chromium: widths, and what searches find
	$(BIN)/python docs/check_site.py docs/_build/html

docs: $(VENV)/.stamp-docs ## build the documentation into docs/_build/html and check its links
	$(ONE_THREAD) $(BIN)/sphinx-build -W -n -j 2 --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

test-tutorials: $(VENV)/.stamp-tutorials ## execute the tutorials
	$(ONE_THREAD) $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 tutorials

audit: $(VENV)/.stamp-audit ## look the pinned dependencies up in the list of known vulnerabilities (needs the network)
	$(BIN)/pip-audit --strict -r constraints.txt --no-deps --disable-pip

check-dist: ## build sdist and wheel, check them, run the README with the installed wheel (needs the network)
	.ci/check_dist $(PYTHON)

test-oldest: $(OLDEST)/.stamp-test ## run the tests with the oldest version allowed of every direct dependency
	$(ONE_THREAD) $(OLDEST)/bin/python -m pytest -n $(WORKERS) $(TESTS)

test-latest: $(LATEST)/.stamp-test ## run the tests with a newer Python and the newest of every dependency
	$(ONE_THREAD) $(LATEST)/bin/python -m pytest -n $(WORKERS) $(TESTS)

clean: ## remove what the other commands made, environments included
	rm -rf $(VENV) $(OLDEST) $(LATEST) demo dist build docs/_build docs/tutorials/*.ipynb docs/tutorials/gallery.inc docs/tutorials/pictures docs/jupyter_execute .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis .coverage* htmlcov

# Debian splits ensurepip off its Python: where `venv` finds none, the pip outside puts one inside.
define make_venv
	$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; set $(2)=/path/to/python")'
	$(1) -m venv $(3) || { $(1) -m venv --clear --without-pip $(3) && $(1) -m pip --python $(3)/bin/python install pip; }
endef

$(BIN)/python:
	$(call make_venv,$(PYTHON),PYTHON,$(VENV))

# torch comes first, alone and pinned: an index or a folder of wheels that has a CPU build of that very version
# is then taken, where an open requirement would pull gigabytes of CUDA libraries.
$(VENV)/.stamp-torch: constraints.txt | $(BIN)/python
	$(PIP) install torch==$(TORCH)
	touch $@

$(VENV)/.stamp-run: $(SOURCES) $(VENV)/.stamp-torch
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.stamp-test $(VENV)/.stamp-lint $(VENV)/.stamp-docs $(VENV)/.stamp-tutorials: $(VENV)/.stamp-%: $(SOURCES) $(VENV)/.stamp-torch
	$(PIP) install -c constraints.txt -e ".[$*]"
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-audit: | $(BIN)/python
	$(PIP) install pip-audit
	touch $@

$(OLDEST)/bin/python:
	$(call make_venv,$(PYTHON_OLDEST),PYTHON_OLDEST,$(OLDEST))

# torch first, as above; TORCH_OLDEST takes another version where no build of the oldest is at hand.
$(OLDEST)/.stamp-test: pyproject.toml constraints-oldest.txt | $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip install torch==$(TORCH_OLDEST)
	sed '/^torch==/d' constraints-oldest.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install -c $(OLDEST)/constraints.txt -e ".[test]" torch==$(TORCH_OLDEST)
	touch $@

$(LATEST)/bin/python:
	@test -n "$(PYTHON_LATEST)" || { echo "No Python 3.12 or 3.13 found; set PYTHON_LATEST=/path/to/python" >&2; exit 1; }
	$(call make_venv,$(PYTHON_LATEST),PYTHON_LATEST,$(LATEST))

$(LATEST)/.stamp-test: pyproject.toml | $(LATEST)/bin/python
	$(LATEST)/bin/python -m pip install --upgrade --upgrade-strategy eager -e ".[test]" annbatch
	touch $@
