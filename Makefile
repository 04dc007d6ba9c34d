# Everything runs in a virtual environment of its own in the tree; each target sets up what it needs.

PYTHON ?= python3
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*) $(wildcard fastnorm/*.pyx fastnorm/*.pxi) setup.py pyproject.toml

.PHONY: demo test bench kernels floor lint format ctest clean

demo: $(VENV)/demo
	$(BIN)/python examples/train_digits.py
	$(BIN)/fastnorm bench --quick

# PEERS=1 installs torch as well and leaves no test skipped.
test: $(VENV)/$(if $(filter-out 0,$(PEERS)),peers,test)
	$(BIN)/python -m pytest --cov=fastnorm --cov-report=term-missing $(PYTEST_ARGS)

bench: $(VENV)/bench
	$(BIN)/python -m pytest bench/test_bench.py -p no:cacheprovider --benchmark-group-by=group

# What the kernels cost in the cache, without Python.
kernels:
	mkdir -p build
	$(CC) -std=c11 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -Icsrc \
	    csrc/isa_*.c csrc/dispatch.c bench/kernels.c -lm -o build/kernels
	build/kernels

# What passes over memory cost that compute nothing.
floor:
	mkdir -p build
	$(CC) -std=c11 -O3 -ffp-contract=off -fno-math-errno -fopenmp -Wall -Wextra -Icsrc \
	    csrc/isa_*.c csrc/dispatch.c bench/floor.c -lm -o build/floor
	for mb in 0.2 4 100; do build/floor 1 $$mb && build/floor 2 $$mb || exit 1; done

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.c csrc/*.h csrc/*.inc tests/c/*.c bench/*.c bench/peers/*.cpp
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastnorm/*.pyx fastnorm/*.pxi
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.c csrc/*.h csrc/*.inc tests/c/*.c bench/*.c bench/peers/*.cpp

# The C library without Python; without OpenMP where the compiler has none, as in setup.py.
OPENMP_PROBE := \#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n
ctest:
	mkdir -p build
	openmp=$$(printf '$(OPENMP_PROBE)' | $(CC) -fopenmp -x c - -o build/probe 2>/dev/null && echo -fopenmp); \
	$(CC) -std=c11 -O3 -ffp-contract=off -fno-math-errno $$openmp -Wall -Wextra -Icsrc \
	    csrc/*.c tests/c/test_fastnorm.c -lm -lpthread -o build/test_fastnorm
	build/test_fastnorm

clean:
	rm -rf $(VENV) build dist *.egg-info fastnorm/_core.c fastnorm/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp for each extra: the package, built from this tree, and what the extra needs.
$(VENV)/demo $(VENV)/test $(VENV)/bench $(VENV)/dev $(VENV)/peers: $(VENV)/%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
