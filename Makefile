# Everything runs in .venv, which `make install` makes from the pins of constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install run smoke test test-faults lint ui clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install
	$(BIN)/fromzero run $(ARGS)

smoke: install
	$(BIN)/fromzero run smoke $(ARGS)

# The fast ones first, then whole pipelines, both in two processes: a pipeline leaves half of two cores idle while it
# starts and stops Ray. 5: ARGS names none of these.
PROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: install lint
	$(BIN)/python -m pytest -m 'not slow and not faults' $(PROCESSES) $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -m 'slow and not faults' $(PROCESSES) $(ARGS) || [ $$? -eq 5 ]

test-faults: install
	FROMZERO_TEST_AWAY_SECONDS=60 \
	$(BIN)/python -m pytest -m 'faults or not faults' tests/faults tests/components/pretraining/test_hang.py \
	  tests/components/pretraining/test_elastic.py tests/infra/test_server_restart.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: install
	$(BIN)/fromzero ui $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
