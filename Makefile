# make demo   sets up, builds v1 to v3 on a small model, trains on v3; no GPU, no hub
# make test   sets up, runs the tests
# make check  format, lint, types, tests: what CI runs

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check format lint types env clean-demo

env: $(READY)

$(READY): pyproject.toml requirements/pins.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "prefdata needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" && false)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/pins.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m examples.demo

test: $(READY)
	$(BIN)/python -m pytest

check: format lint types test

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

clean-demo:
	rm -rf .demo
