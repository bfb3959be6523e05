# Every target makes .venv when it is absent and installs only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

.PHONY: demo test test-slow test-cluster gpu fuzz check format bench docs install clean

demo: $(STAMP)
	$(BIN)/sweeps quickstart

# Two processes of one thread: one begins with the tests of sweeps that use Ray, the other with those
# of actors (tests/conftest.py).
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# Needs root. Installs what it lacks from Debian; its hosts and servers go with it, however it ends.
test-cluster: $(STAMP)
	tests/cluster/install.sh
	$(BIN)/python -m pytest -q -m cluster tests/cluster; status=$$?; \
	$(BIN)/python -m tests.cluster.hosts && exit $$status

# The acceptance on one GPU, in at most eight minutes (docs/gpu.md). DEVICE=pretend, DEVICE=cpu: the same parts
# without one. PARTS="machine speed": these alone.
DEVICE ?= cuda
gpu: $(STAMP)
	$(BIN)/python -m tests.gpu --device $(DEVICE) $(if $(PARTS),--parts $(PARTS))

# Thousands of damaged inputs for every reader; FUZZ_EXAMPLES: how many for each (default 3000).
fuzz: $(STAMP)
	$(BIN)/python -m pytest -q --hypothesis-profile=fuzz --timeout=0 tests/fuzz

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# The documentation site, in build/site; a warning is an error.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	touch $(DOCS_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing fusion-sweeps into $(VENV), with about 170 packages (torch, transformers, Ray, MLflow, ...):"
	@echo "about 2.5 GB on disk, up to 8 GB where pip's torch brings CUDA; some minutes, in which pip says nothing"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) outputs .mypy_cache .ruff_cache .pytest_cache
