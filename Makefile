# Everything runs in a virtual environment of its own in the tree; each target sets up what it needs.

PYTHON ?= python3
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) $(wildcard fastnorm/*.pyx fastnorm/*.pxi) setup.py pyproject.toml
CSOURCES := $(shell find csrc tests/c bench -name '*.[ch]' -o -name '*.inc' -o -name '*.cpp')

.PHONY: demo test bench kernels floor lint format ctest clean

demo: $(VENV)/demo
	$(BIN)/python examples/train_digits.py
	$(BIN)/fastnorm bench --quick

# PEERS=1 installs torch as well and leaves no test skipped.
test: $(VENV)/$(if $(filter-out 0,$(PEERS)),peers,test)
	$(BIN)/python -m pytest --cov=fastnorm --cov-report=term-missing $(PYTEST_ARGS)

bench: $(VENV)/bench
	$(BIN)/python -m pytest bench/test_bench.py -p no:cacheprovider --benchmark-group-by=group

# Programs in C link what the extension was made of.
OPENMP = $$(nm build/libfastnorm.a | grep -q -e GOMP -e kmpc && echo -fopenmp)
LINK = $(CC) -std=c11 -O2 -Wall -Wextra -Icsrc $< build/libfastnorm.a $(CFLAGS) $(OPENMP) -lm -lpthread -o $@

# What the kernels cost in the cache, without Python.
kernels: build/kernels
	build/kernels

# What passes over memory cost that compute nothing.
floor: build/floor
	for mb in 0.2 4 100; do build/floor 1 $$mb && build/floor 2 $$mb || exit 1; done

# The C library without Python.
ctest: build/test_fastnorm
	build/test_fastnorm

build/kernels build/floor: build/%: bench/%.c $(VENV)/bench
	$(LINK)
build/test_fastnorm: tests/c/test_fastnorm.c $(VENV)/bench
	$(LINK)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastnorm/*.pyx fastnorm/*.pxi
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSOURCES)

clean:
	rm -rf $(VENV) build dist *.egg-info fastnorm/_core.c fastnorm/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp for each extra: the package, built from this tree, and what the extra needs.
$(VENV)/demo $(VENV)/test $(VENV)/bench $(VENV)/dev $(VENV)/peers: $(VENV)/%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
