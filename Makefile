PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo test test-slow chaos bench check docs dist clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

demo: install
	$(BIN)/igpt demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto tests/core  # a core for each
	$(BIN)/pytest --ignore=tests/core

test-slow: install
	$(BIN)/pytest -m slow

chaos: install
	$(BIN)/pytest -m 'slow or chaos' tests/chaos

bench: install
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/decode.py --device cpu --rows 4 --pixels 200
	$(BIN)/python benchmarks/job.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

dist: install
	$(BIN)/pip install --quiet -c constraints.txt build
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) out build dist *.egg-info
