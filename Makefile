# make demo: install, run all three stages on the embedded glyphs, print the comparison
# make paper: install, all three stages on the glyphs: features, a search, five seeds with what it found, the report
# make test: install, run the tests         make lint: formatting, lint, types
# make docs: install, build the documentation as site/index.html; a warning is an error
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo paper test test-slow lint docs install

demo: install
	$(BIN)/python train.py stage=pretrain
	$(BIN)/python train.py -m sweep=demo
	$(BIN)/python train.py stage=report 'stage.select=glyphs_1shot*-none-seed0'

paper: install
	$(BIN)/python train.py -m sweep=paper_glyphs
	$(BIN)/python train.py stage=report 'stage.select=glyphs_1shot-none-seed*train_splits*'

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict conf
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@
