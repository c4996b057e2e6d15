# Two commands set everything up on a fresh clone: `make demo` and `make test`.
# Any Python from 3.10 on will do: `make demo PYTHON=python3.12`.

PYTHON ?= python3
JOBS ?= 2# test processes
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit test-wheel test-faults test-zoo bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## train, search, fine-tune and export a small network on real images (3 minutes after the install)
	$(BIN)/python -m autoprune.demo

test: lint types unit test-wheel ## everything that must pass before a change is merged

lint: $(VENV)/.test ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## mypy, strict
	$(BIN)/mypy

unit: $(VENV)/.test ## the default tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-wheel: $(VENV)/.test ## build the wheel, install it alone, import every module from another folder
	$(BIN)/python -m tests.check_wheel

# One environment for all targets. A stamp says which extra was installed last from which files, so that .venv is
# made once and brought up to date when pyproject.toml or constraints.txt change. A half-made one is made anew.
$(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[$*]"
	@touch $@

test-faults: $(VENV)/.test ## kill real processes at random moments, for minutes
	$(BIN)/python -m pytest -q -m slow tests/faults

test-zoo: $(VENV)/.test ## check hundreds of networks, each in a process of its own, and write docs/coverage.md
	$(BIN)/python -m tests.zoo --jobs $(JOBS)

bench: $(VENV)/.test ## print the figures that the docs quote (half an hour; Fashion-MNIST is downloaded where it is missing)
	for script in benchmarks/*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

clean: ## remove .venv and what the tools left behind; keeps runs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
	find agents autoprune benchmarks search_spaces tests -name __pycache__ -type d -prune -exec rm -rf {} +
