# Everything a developer runs. A virtual environment is made on first use; PYTHON names the interpreter for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A second environment, with LLaVA itself and the old transformers it needs: Python 3.11 or 3.12.
STOCK_PYTHON ?= $(PYTHON)
STOCK_VENV := .stock-venv
STOCK_BIN := $(STOCK_VENV)/bin
# A third one, with the oldest releases that setup.cfg allows: Python 3.10 or 3.11.
LOWEST_PYTHON ?= $(PYTHON)
LOWEST_VENV := .lowest-venv
LOWEST_BIN := $(LOWEST_VENV)/bin
LLAVA := llava-torch==1.2.2.post1
TORCH := torch==2.13.0
# PyTorch's own index of CPU builds, for a machine without a GPU whose pip does not find such a build by itself.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# $(call new_environment,PYTHON,VENV): a virtual environment with torch.
define new_environment
$(1) -m venv $(2)
$(2)/bin/python -m pip install --quiet --upgrade pip
if command -v nvidia-smi >/dev/null; then $(2)/bin/python -m pip install --quiet $(TORCH); \
else $(2)/bin/python -m pip install --quiet $(TORCH)+cpu 2>/dev/null \
  || $(2)/bin/python -m pip install --quiet $(TORCH) --index-url $(TORCH_CPU_INDEX); fi
endef

.PHONY: demo test test-newest test-stock test-lowest battery coverage stock support check bench clean

demo: $(BIN)/.installed
	rm -rf s4convert-demo
	$(BIN)/s4convert demo s4convert-demo

# The two environments side by side, each on one core; what the one prints comes whole, and then what the other does.
SIDE_BY_SIDE := $(MAKE) --no-print-directory --jobs=2 --output-sync=target --keep-going
PYTEST := -m pytest

test: $(BIN)/.installed $(STOCK_BIN)/.installed
	$(SIDE_BY_SIDE) test-newest test-stock

test-newest: $(BIN)/.installed
	$(BIN)/python $(PYTEST)

test-stock: $(STOCK_BIN)/.installed
	$(STOCK_BIN)/python $(PYTEST)

# Whether the lower bounds of setup.cfg hold; hypothesis and pytest are new ones.
test-lowest: $(LOWEST_BIN)/.installed
	$(LOWEST_BIN)/python $(PYTEST)

# Faults, losses of power, interrupts, rivals and limits, and the tables of docs/reliability.md; BATTERY=--write puts
# them there. See tests/battery.
battery: $(BIN)/.installed
	$(BIN)/python -m tests.battery $(BATTERY)

# What the tests run of the package, lines and branches, in both environments and every process they start.
coverage: $(BIN)/.installed $(STOCK_BIN)/.installed
	rm -rf build/coverage
	$(SIDE_BY_SIDE) PYTEST="-m coverage run -m pytest" test-newest test-stock
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

stock: $(STOCK_BIN)/.installed

# The table of supported families in docs/checkpoints.md, from what the tests really ran in both environments.
support: $(BIN)/.installed $(STOCK_BIN)/.installed
	$(BIN)/python -m pytest -m "" tests/families --junitxml build/families.xml
	$(STOCK_BIN)/python -m pytest -m "" tests/families --junitxml build/families-stock.xml
	$(BIN)/python -m tests.families.support_matrix build/families.xml build/families-stock.xml

check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# BENCH=--quick for 2 GB in place of 14, BENCH=--growth, BENCH=--xfs and others: see benchmarks/conversion.py.
bench: $(BIN)/.installed
	$(BIN)/python -m benchmarks.conversion $(BENCH)
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf $(VENV) $(STOCK_VENV) $(LOWEST_VENV) s4convert-demo

$(BIN)/.installed: setup.cfg pyproject.toml
	$(call new_environment,$(PYTHON),$(VENV))
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(STOCK_BIN)/.installed: setup.cfg pyproject.toml tests/stock/requirements.txt
	$(call new_environment,$(STOCK_PYTHON),$(STOCK_VENV))
	$(STOCK_BIN)/python -m pip install --quiet --requirement tests/stock/requirements.txt
	$(STOCK_BIN)/python -m pip install --quiet --no-deps $(LLAVA)
	$(STOCK_BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(LOWEST_BIN)/.installed: setup.cfg pyproject.toml
	$(LOWEST_PYTHON) -m venv $(LOWEST_VENV)
	mkdir -p build
	$(LOWEST_BIN)/python -c "import configparser as c; f = c.ConfigParser(); f.read('setup.cfg'); \
	    print(f['options']['install_requires'].replace('>=', '=='))" > build/lowest.txt
	$(LOWEST_BIN)/python -m pip install --quiet --requirement build/lowest.txt --editable '.[test]'
	touch $@
