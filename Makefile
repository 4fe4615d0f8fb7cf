# Everything a developer runs. A virtual environment is made on first use; PYTHON names the interpreter for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# PyTorch's own index of CPU builds, for a machine without a GPU whose pip does not find such a build by itself.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test check bench clean

demo: $(BIN)/.installed
	rm -rf s4convert-demo
	$(BIN)/s4convert demo s4convert-demo

test: $(BIN)/.installed
	$(BIN)/python -m pytest

check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(BIN)/.installed
	$(BIN)/python -m benchmarks.copy_floor
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) s4convert-demo

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	if command -v nvidia-smi >/dev/null; then $(BIN)/python -m pip install --quiet $(TORCH); \
	else $(BIN)/python -m pip install --quiet $(TORCH)+cpu 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet $(TORCH) --index-url $(TORCH_CPU_INDEX); fi
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
