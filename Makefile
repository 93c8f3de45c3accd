# make serve    install what serving needs and serve the checkpoint in checkpoints/ on 127.0.0.1:8000
# make test     install what tests need and run them all: lint, types, pytest
# make scatter  compile torch-scatter against the installed torch (some five minutes, once)
# make lint     lint and types alone
# make abuse    hostile clients and broken files against a server of its own: some ten minutes, on loopback
# make audit    look every pin up in the public list of known vulnerabilities, where that can be reached
# make clean    remove .venv and every cache
#
# What is done already is skipped: a stamp in .venv is as new as the last installation from both pyproject.toml and
# constraints.txt. PYTHON chooses the interpreter, ARGS goes to the command: make serve ARGS='--port 8001'

PYTHON ?= python3
ARGS   ?=

VENV    := .venv
BIN     := $(VENV)/bin
# Built with the pinned setuptools in .venv, not with whatever is newest on the day.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-build-isolation
PINS    := pyproject.toml clients/python/pyproject.toml constraints.txt

.PHONY: serve test lint scatter abuse audit clean

serve: $(VENV)/.serve
	@$(BIN)/thoughtbubbles serve $(ARGS)

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip may hold a wheel compiled against another torch, which does not import: then it is compiled anew.
scatter: $(VENV)/.serve
	@$(BIN)/python -c 'import torch_scatter' 2>/dev/null || { \
		echo 'Compiling torch-scatter: some five minutes.'; \
		$(INSTALL) --quiet ninja wheel && $(INSTALL) --quiet --editable '.[scatter]' && \
		{ $(BIN)/python -c 'import torch_scatter' 2>/dev/null || \
			$(INSTALL) --quiet --no-cache-dir --force-reinstall --no-deps torch-scatter; }; }
	@$(BIN)/python -c 'import torch_scatter; print("torch-scatter", torch_scatter.__version__)'

abuse: $(VENV)/.serve
	$(BIN)/python -m benchmarks.abuse $(ARGS)

audit: $(VENV)/.serve
	@$(INSTALL) --quiet pip-audit
	$(BIN)/python -m pip_audit --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Thoughtbubbles needs CPython 3.11 or newer; choose one with make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: $(VENV)/.created $(PINS)
	@echo 'Installing into $(VENV): some minutes the first time.'
	@$(INSTALL) --quiet setuptools
	@$(INSTALL) --editable . --editable ./clients/python
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@$(INSTALL) --quiet --editable '.[test]'
	@touch $@
