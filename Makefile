# Everything runs in a virtual environment of its own in the tree; each target sets up what it needs.

PYTHON ?= python3
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) $(wildcard fastnorm/*.pyx fastnorm/*.pxi) setup.py pyproject.toml
CSOURCES := $(shell find csrc tests/c bench -name '*.[ch]' -o -name '*.inc' -o -name '*.cpp')
# PEERS=1 installs torch as well and leaves no test skipped.
TESTS := $(VENV)/$(if $(filter-out 0,$(PEERS)),peers,test)

.PHONY: help demo test test-long coverage bench kernels floor lint format ctest clean

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/demo ## train with each normalizer, and a short table of speed
	$(BIN)/python examples/train_digits.py
	$(BIN)/fastnorm bench --quick

test: $(TESTS) ## minutes; PEERS=1: compares with torch and others too
	$(BIN)/python -m pytest -n auto -m "not long" $(PYTEST_ARGS)

test-long: $(TESTS) ## what is large or slow; PEERS=1 as above
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

# In a copy of the tree, so that the extension in this one stays as it is.
COVERED := build/coverage
COVERAGE := cd $(COVERED) && FASTNORM_CFLAGS="--coverage -O1" PYTHONPATH=. $(CURDIR)/$(BIN)
coverage: $(TESTS) ## lines of Python and of C that `make test` runs; fails below 95%
	mkdir -p $(COVERED)
	cp -ru --preserve=timestamps $(filter-out build,$(wildcard *)) $(COVERED)
	rm -f $(COVERED)/fastnorm/_core.*.so
	find $(COVERED) -name '*.gcda' -delete
	$(COVERAGE)/python setup.py -q build_ext --inplace
	$(COVERAGE)/python -m pytest -n auto -m "not long" --cov=fastnorm $(PYTEST_ARGS)
	$(COVERAGE)/gcovr --filter csrc/ --fail-under-line 95 build

bench: $(VENV)/bench ## speed of every case, in the form of pytest-benchmark
	$(BIN)/python -m pytest bench/test_bench.py -p no:cacheprovider --benchmark-group-by=group

# Programs in C link what the extension was made of.
OPENMP = $$(nm build/libfastnorm.a | grep -q -e GOMP -e kmpc && echo -fopenmp)
LINK = $(CC) -std=c11 -O2 -Wall -Wextra -Icsrc $< build/libfastnorm.a $(CFLAGS) $(OPENMP) -lm -lpthread -o $@

kernels: build/kernels ## what each kernel costs in the cache, without Python
	build/kernels

floor: build/floor ## what passes over memory cost that compute nothing
	for mb in 0.2 4 100; do build/floor 1 $$mb && build/floor 2 $$mb || exit 1; done

CTESTS := build/test_fastnorm build/test_around build/test_kernels
ctest: $(CTESTS) ## the C library and its kernels, without Python
	$(foreach test,$(CTESTS),$(test) &&) true

build/kernels build/floor: build/%: bench/%.c $(VENV)/bench
	$(LINK)
$(CTESTS): build/%: tests/c/%.c tests/c/plain.h $(TESTS)
	$(LINK)

lint: $(VENV)/lint ## check the sources; compiles nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastnorm/*.pyx fastnorm/*.pxi
	$(BIN)/mypy

format: $(VENV)/lint ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSOURCES)

clean: ## remove what was built, and the environment
	rm -rf $(VENV) build dist *.egg-info fastnorm/_core.c fastnorm/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp for each extra: the package, built from this tree, and what the extra needs.
$(VENV)/demo $(VENV)/test $(VENV)/bench $(VENV)/peers: $(VENV)/%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

# The tools alone.
$(VENV)/lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group lint
	touch $@
