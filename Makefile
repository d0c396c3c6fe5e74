.PHONY: demo test lint bench clean
PYTHON ?= python3
BIN := .venv/bin

# The environment: everything at the versions of constraints.txt.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: .venv/ready  ## correct an outdated flag in a real model, measure it, and put the model back
	$(BIN)/hotfix demo

# Beside the environment: where they are installed, every import of diffusers loads them, and says so.
.venv/quantisers: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $@ torchao bitsandbytes

# Beside it too: 65 packages that only these tests need.
.venv/servers: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --prefix $@ "ray[serve]" bentoml

test: .venv/ready .venv/quantisers .venv/servers  ## the tests: no network, no GPU
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal
	PYTHONPATH=.venv/quantisers $(BIN)/python -m pytest --numprocesses auto tests/test_quantised.py
	PYTHONPATH=$$(echo .venv/servers/lib/python*/site-packages) $(BIN)/python -m pytest tests/test_fleet.py tests/test_serve_recipes.py

lint: .venv/ready  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready  ## the numbers of the flag patches (benchmarks/flags.json)
	$(BIN)/python benchmarks/flags.py

clean:
	rm -rf .venv dist demo
