# The commands of the project; each makes what it needs first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OP ?= measure
IMAGE ?= build/sample.vhd
ARGS ?=
# What the cffi bindings are made of.
BINDINGS := $(wildcard vmm/*/_build.py vmm/*/_binding_source.c)
TARGET ?= all
SECONDS ?= 60
JOBS ?= 1

.PHONY: run test agreement escape lint format guest generate zig-test check-binary-sizes bench fuzz-host clean

# The environment: the package in editable mode with what development needs.  Made again when its list changes.
$(VENV)/.ready: pyproject.toml setup.py $(BINDINGS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

guest: $(VENV)/.ready
	# The bindings again after `make clean`, or for another Python.
	$(BIN)/python -c 'import vmm.host._binding, vmm.kvm._binding, vmm.sandbox._binding' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m tools.build_guests
	# Also where PYTHONDONTWRITEBYTECODE is set: compiling at every start would cost more than a whole run.
	$(BIN)/python -m compileall -q vmm calltable

generate:
	$(PYTHON) -m tools.generate

build/sample.vhd: tools/sample_vhd.py
	mkdir -p build
	$(PYTHON) tools/sample_vhd.py $@

# `make run` measures a small sample; `make run OP=check IMAGE=path` runs an operation on an image of one's own.
run: guest $(if $(filter build/sample.vhd,$(IMAGE)),build/sample.vhd)
	$(BIN)/pyvmm run $(OP) $(ARGS) $(IMAGE)

test: guest
	$(BIN)/python -m tools.build_guests --test
	$(BIN)/python -m pytest -n 2

# How far answers agree with the installed qemu-img's on the images below a folder: `make agreement DIR=path`.
agreement: guest
	$(BIN)/python -m tests.differential.agreement $(DIR)

# What a prisoner of the jail tried, and which layer stopped it.
escape: guest
	$(BIN)/python -m tests.escape

zig-test: $(VENV)/.ready
	$(BIN)/python -m tools.build_guests --test

lint: $(VENV)/.ready
	$(BIN)/python -m tools.generate --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m ziglang fmt --check guest tests examples

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m ziglang fmt guest tests examples

check-binary-sizes: guest
	$(BIN)/python -m tools.build_guests --check-sizes

bench: guest
	$(BIN)/python -m bench

# What only fuzzing needs, into the same environment.
$(VENV)/.fuzz-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group fuzz
	touch $@

# `make fuzz-host TARGET=device SECONDS=600 JOBS=2`; every target without TARGET.
fuzz-host: guest $(VENV)/.fuzz-ready
	$(BIN)/python -m fuzzing $(TARGET) --seconds $(SECONDS) --jobs $(JOBS)

clean:
	rm -rf build dist vmm/_guest vmm/*/*.so vmm/*/_binding.c .zig-cache .mypy_cache .ruff_cache .pytest_cache
	rm -rf -- *.egg-info
