# Works on a fresh machine with git, make and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# DVC starts the stages through `python`, which must be the one with the dependencies.
export PATH := $(CURDIR)/$(BIN):$(PATH)

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup tools repro git test bench check format

help: ## show these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: .venv/ready ## make .venv with the pinned dependencies

tools: .venv/tools ## add what tests and checks need

# Its scripts name the folder that it was made in. Not removed here: it may be in use there.
PLACE := $(shell cat .venv/ready 2>/dev/null)
ifdef PLACE
ifneq ($(PLACE),$(CURDIR))
$(info .venv was made in $(PLACE); if commands are not found or run other code, rm -r .venv)
endif
endif

.venv/ready: requirements.txt pyproject.toml
	@! [ -x $(BIN)/python ] || $(BIN)/python -c '$(NEW_ENOUGH)' \
	  || { echo ".venv: was made with a Python before 3.11; rm -r .venv, then run this again"; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): is not installed"; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' \
	  || { echo "carseg needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  -r requirements.txt -e .
	@# On all cores, where pip takes one; some packages carry files that are not meant to compile.
	@$(BIN)/python -m compileall -qq -j 0 .venv || :
	@echo "$(CURDIR)" > $@

.venv/tools: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

repro: git setup ## run the pipeline, then show the scores
	$(BIN)/dvc --wait-for-lock repro
	@echo && $(BIN)/carseg scores

git:
	@git rev-parse --git-dir >/dev/null 2>&1 \
	  || { echo "DVC keeps its history in git: git init && git add -A && git commit -m start"; exit 1; }

test: tools ## run all tests
	$(BIN)/python -m pytest

bench: setup ## time training and prediction against the usual ways
	@# What dvc repro trained, once it has, also gives masks to compare.
	$(BIN)/python -m benchmarks.speed $(if $(wildcard u2net_segmentation_dice_loss.pth),--trained)

check: tools ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

format: tools ## fix format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
