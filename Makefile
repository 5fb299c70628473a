# `make demo` shows the product, `make test` tests it; each sets up what it needs in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= $(shell expr $$(nproc) + 1)
# Hundreds of processes are started: what one has compiled the next shall find.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test faults threats bench fuzz lint types check clean

demo: $(STAMP)
	@$(BIN)/knot demo $(ARGS)

# Most tests wait most of the time, and run beside each other; those marked `alone` measure, and have the machine for themselves.
test: $(STAMP)
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest -m 'not alone' --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m alone
endif

faults: $(STAMP)
	KNOT_FULL=1 $(BIN)/pytest tests/faults --capture=no $(ARGS)

# Each threat of docs/security.md, played on the wire where there is a wire, with a verdict and a figure.
threats: $(STAMP)
	$(BIN)/pytest -m threat $(ARGS)

bench: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

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
