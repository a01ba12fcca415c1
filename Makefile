# `make quickstart` and `make test` do everything from a bare Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin
JOBS ?= 2
QUICKSTART ?= quickstart
EXAMPLES ?= 100

.PHONY: help quickstart test test-long test-slow test-kills test-demo fuzz lint types install encoders exports leaderboard docs clean

help:
	@echo "make quickstart   install into .venv, fine-tune on generated scenes, show the result"
	@echo "make test         install into .venv and run the test suite"
	@echo "make test-long    the tests marked long: snippets, killed and resumed runs, the browser"
	@echo "make test-slow    the tests marked slow (long runs, real data)"
	@echo "make test-kills   a run killed twenty times ends with the bits of one that was not"
	@echo "make test-demo    the demo's page in a browser, its Space and handler, and under load"
	@echo "make fuzz         mutated files of every kind: works or one message; EXAMPLES=100 of each"
	@echo "make lint types   ruff and mypy"
	@echo "make encoders     run every decoder on every timm module; hours, can be resumed"
	@echo "make exports      export every decoder on an encoder of each family; an hour, can be resumed"
	@echo "make docs         the pages of docs/ as a site"
	@echo "make leaderboard  render benchmarks/ again from its records"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: install
	rm -rf $(QUICKSTART)
	$(BIN)/zoo quickstart --out $(QUICKSTART)

test: install  # one thread a process: several share the cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not long and not fuzz"

test-long: install  # snippets, killed and resumed runs, the browser; other runtimes in processes of their own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "long" --ignore tests/export
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "long" tests/export

test-slow: install
	$(BIN)/python -m pytest -m slow

test-kills: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training/test_kills.py

test-demo: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/demo -m long

fuzz: install
	OMP_NUM_THREADS=1 EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n $(JOBS) -m fuzz

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

encoders: install
	$(BIN)/zoo check encoders --write

exports: install
	$(BIN)/zoo check exports --write

leaderboard: install
	$(BIN)/zoo leaderboard build

docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --quiet
	@echo "the pages are in site/"

clean:
	rm -rf .venv quickstart site .pytest_cache .mypy_cache .ruff_cache
