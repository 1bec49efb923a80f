# Needs Python 3.11, 3.12 or 3.13 and make; everything else goes into .venv.
PYTHON ?= python3
RUNS ?= runs
BIN := .venv/bin
# The versions of requirements.txt depend on the Python, so an environment of another Python is made anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := installed-$(VERSION)
# Sets of packages beyond requirements.txt: requirements-NAME.txt, and tests with the marker NAME.
OPTIONAL := torch onnx tpu kubernetes

.PHONY: help install quickstart lint test test-all test-optional clean

help:
	@echo "make quickstart   train, evaluate and plot BN-x5 on real digits, about 3 minutes on 2 CPU cores"
	@echo "make lint         the style of all files and the types of the public modules"
	@echo "make test         the tests"
	@echo "make test-all     the tests and the slow end-to-end checks"
	@echo "make test-optional  the tests that need $(OPTIONAL), each in an environment of its own (.venv-NAME)"
	@echo "make install      only set up .venv"
	@echo "make clean        remove .venv and caches (not $(RUNS)/)"

install: .venv/$(INSTALLED)

.venv/$(INSTALLED): requirements.txt pyproject.toml
	$(call environment,.venv,requirements.txt)

.venv-%/$(INSTALLED): requirements-%.txt requirements.txt pyproject.toml
	$(call environment,.venv-$*,requirements.txt -r $<)

# $(call environment,FOLDER,FILE): a virtual environment with the packages of a requirements file.
define environment
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
  { echo "This project needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12"; exit 1; }
@test -e $(1)/lib/python$(VERSION) || rm -rf $(1)
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2)
@touch $(1)/$(INSTALLED)
endef

quickstart: install
	$(BIN)/python scripts/train.py --config=configs/bn_x5.py:quickstart \
	  --config.data.dir=$(RUNS)/data --workdir=$(RUNS)/quickstart

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile --durations=20

test-all: install
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

test-optional: $(OPTIONAL:%=.venv-%/$(INSTALLED))
	for name in $(OPTIONAL); do .venv-$$name/bin/python -m pytest -m $$name || exit 1; done

clean:
	rm -rf .venv .venv-* *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
