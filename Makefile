# `make train` and `make test` are all a fresh machine needs: Python 3.11+, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/sca_unet_sample
REQUIREMENTS := $(if $(shell nvidia-smi -L 2>/dev/null),requirements-cuda12.txt,requirements.txt)

.PHONY: setup train test lint

setup: $(VENV)/installed

# The stamp is newer than what was installed; a change of the lists installs again.
$(VENV)/installed: pyproject.toml requirements.txt requirements-cuda12.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) --editable '.[dev]'
	touch $@

train: setup
	$(BIN)/python launch.py --config=configs/sca_unet.py:sample --workdir=$(WORKDIR)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
