# Everything a user or developer runs. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
# The torch to install where the environment has none; any from 2.11 on serves (make test TORCH="torch==2.11.0").
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# What the compiled operators and the installed metadata depend on; Python files are used where they lie.
SOURCES := pyproject.toml setup.py $(wildcard build_support/*.py) $(shell find cuda_ops/csrc -type f)

# Versions of transformers that the tests load pushed models with.
OTHERS := 5.17.0 5.23.0

# Adapters and data that are too large for the repository: what `make table` and `make budgets` measure on.
SHARED ?= ../shared

# Compute capabilities that `make cuda-ptx` compiles for.
ARCHS ?= 9.0

# compute-sanitizer of the CUDA toolkit, by its path where it is not on the PATH.
SANITIZER ?= compute-sanitizer
OURS := --kernel-name-exclude kns=at6native

.PHONY: help install demo table budgets test test-cuda-host cuda-coverage cuda-ptx test-cuda sanitize lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed-dev $(VENV)/.installed-others ## environment in .venv, the package with its operators compiled, and everything for development

demo: $(VENV)/.installed-demo ## a real BERT on SQuAD and QNLI: exact attention and three clustered methods side by side
	$(BIN)/python examples/demo.py

table: $(VENV)/.installed-demo ## docs/fidelity.md: every adapter with every method; goes on after an interruption
	$(BIN)/python benchmarks/fidelity.py --shared $(SHARED)

budgets: $(VENV)/.installed-demo ## docs/budgets.md: error against time for many budgets; goes on after an interruption
	$(BIN)/python benchmarks/budgets.py --shared $(SHARED) --squad 1000

test: $(VENV)/.installed-dev $(VENV)/.installed-others ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

test-cuda-host: $(VENV)/.installed-dev ## tests/ops on the CUDA operators compiled for the host: every parameter set, about an hour
	OMP_NUM_THREADS=1 CUDA_OPS_TEST_BACKEND=host-cuda $(BIN)/python -m pytest -n 2 tests/ops

cuda-coverage: $(VENV)/.installed-dev ## the lines of CUDA kernels that no stage of their program on the host reaches; `make test` asks the same
	OMP_NUM_THREADS=1 $(BIN)/python tests/cuda/kernel_coverage.py

cuda-ptx: $(VENV)/.installed-dev ## what nvcc makes of the CUDA kernels, run on the host and compared; needs nvcc, no GPU: make cuda-ptx ARCHS="8.0 12.0"
	OMP_NUM_THREADS=1 $(BIN)/python tests/cuda/ptx_program.py $(ARCHS)

test-cuda: $(VENV)/.installed-dev ## on a machine with a GPU: tests/ops on the CUDA operators there, and what only a GPU can show
	CUDA_OPS_TEST_BACKEND=cuda $(BIN)/python -m pytest tests/ops
	$(BIN)/python -m pytest -m cuda --deselect tests/cuda/test_operator_suite.py

# Every allocation by itself, for memcheck to see where each ends. Torch's own kernels are not looked at, but by initcheck: some
# of them fill memory that ours read.
sanitize: $(VENV)/.installed-dev ## on a machine with a GPU: compute-sanitizer's four tools over a short run of every operator
	for options in "memcheck $(OURS)" "racecheck $(OURS)" "synccheck $(OURS)" initcheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --error-exitcode 1 --tool $$options $(BIN)/python tests/cuda/sanitize.py || exit; \
	done

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what was built
	rm -rf $(VENV) build cuda_ops/_build_info.json cuda_ops/*.so *.egg-info

$(VENV)/.environment:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2" "setuptools>=77"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed-demo: $(VENV)/.environment $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	$(BIN)/python -m cuda_ops
	touch $@

$(VENV)/.installed-dev: $(VENV)/.environment $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m cuda_ops
	touch $@ $(VENV)/.installed-demo

# Each in a folder of its own, without this package: what people without it have, who load a model that was pushed.
$(VENV)/.installed-others: $(VENV)/.environment
	for version in $(OTHERS); do \
		$(BIN)/python -m pip install --quiet --no-compile --target $(VENV)/transformers/$$version transformers==$$version || exit; \
	done
	touch $@
