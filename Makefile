# `make demo` shows the product, `make test` tests it; each sets up what it needs in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test faults bench lint types check clean

demo: $(STAMP)
	@$(BIN)/knot demo $(ARGS)

test: $(STAMP)
	$(BIN)/pytest $(ARGS)

faults: $(STAMP)
	KNOT_FULL=1 $(BIN)/pytest tests/faults --capture=no $(ARGS)

bench: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMP): pyproject.toml setup.cfg
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
