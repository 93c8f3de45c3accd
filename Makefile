# make serve    install what serving needs and serve the checkpoint in checkpoints/ on 127.0.0.1:8000
# make test     install what tests need and run lint, types and the tests, but for the slow ones
# make test-slow         the tests that `make test` leaves out
# make test-processors   the numeric tests again, with the instruction sets of older processors
# make native-sanitize   the tests of the native step under ASan and UBSan, and of its threads under TSan
# make native-fuzz       random plans on the native step under both, beside the portable one, for SECONDS (600)
# make scatter  compile torch-scatter against the installed torch (some five minutes, once)
# make lint     lint, spelling and types alone
# make coverage run the suite and print which lines and branches it does not reach
# make abuse    hostile clients and broken files against a server of its own, on loopback: some minutes
# make docs     build the documentation site into build/site, without a warning
# make audit    look every pin up in the public list of known vulnerabilities, where that can be reached
# make clean    remove .venv and every cache
#
# What is done already is skipped: a stamp in .venv is as new as the last installation from both pyproject.toml and
# constraints.txt. PYTHON chooses the interpreter, ARGS goes to the command: make serve ARGS='--port 8001'
# WORKERS processes run tests side by side, a file's tests in one of them.

PYTHON ?= python3
ARGS   ?=
WORKERS ?= 2
SECONDS ?= 600

VENV    := .venv
BIN     := $(VENV)/bin
# Built with the pinned setuptools in .venv, not with whatever is newest on the day.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-build-isolation
PINS    := pyproject.toml clients/python/pyproject.toml constraints.txt

PROCESSORS := ATEN_CPU_CAPABILITY=default,MKL_ENABLE_INSTRUCTIONS=SSE4_2,ONEDNN_MAX_CPU_ISA=SSE41,TB_NATIVE_LEVEL=sse2 \
	ATEN_CPU_CAPABILITY=avx2,MKL_ENABLE_INSTRUCTIONS=AVX2,ONEDNN_MAX_CPU_ISA=AVX2,TB_NATIVE_LEVEL=avx2 \
	ONEDNN_MAX_CPU_ISA=AVX512_CORE,TB_NATIVE_LEVEL=avx512
PYTEST  := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# The sanitizers of the compiler, in a Python that was not built with them: they must be loaded first, and it leaks on purpose.
SANITIZE := LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	TB_NATIVE_CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g'

.PHONY: serve test test-slow test-processors native-sanitize native-fuzz install-test lint coverage scatter abuse docs audit clean

serve: $(VENV)/.serve
	@$(BIN)/thoughtbubbles serve $(ARGS)

test: lint
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

# ATen, MKL and oneDNN choose their code by processor: what older ones compute is held to the same bounds. The levels are
# maxima, but for ATen's, which x86 alone has.
test-processors: $(VENV)/.test
	@set -e; for level in $(PROCESSORS); do \
		echo "As on a processor with $$level"; env $$(echo $$level | tr , ' ') $(PYTEST) -m 'numeric and not slow' $(ARGS); done

# Memory, undefined behaviour and data races of the native step.
native-sanitize: $(VENV)/.test
	$(SANITIZE) $(BIN)/python -m pytest tests/engine/native $(ARGS)
	c++ -std=c++17 -O1 -g -fsanitize=thread -pthread -Iengine/native/src tests/engine/native/pool.cpp \
		engine/native/src/threads.cpp -o $(VENV)/pool-test && $(VENV)/pool-test

# The same plans again: make native-fuzz ARGS='--seed N', with N from what it printed.
native-fuzz: $(VENV)/.test
	$(SANITIZE) $(BIN)/python -m tests.engine.native.fuzz --seconds $(SECONDS) $(ARGS)

install-test: $(VENV)/.test

coverage: $(VENV)/.test
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
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
	$(BIN)/python -m benchmarks.server.abuse $(ARGS)

docs: $(VENV)/.serve
	@$(INSTALL) --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

audit: $(VENV)/.serve
	@$(INSTALL) --quiet pip-audit
	$(BIN)/python -m pip_audit --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
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
	@$(BIN)/python -m thoughtbubbles.engine.native || true
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@$(INSTALL) --quiet --editable '.[test]'
	@touch $@
