# Every target is an ordinary command; `make demo` and `make test` set up their environment themselves.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-all quick lint types format clean

demo: .venv/ready
	$(BIN)/vae-anomaly demo

test: lint types
	$(BIN)/pytest -m "not slow" --doctest-modules --cov --cov-report=term tests vae_anomaly

test-all: lint types
	$(BIN)/pytest --doctest-modules --cov --cov-report=term tests vae_anomaly

quick: .venv/ready
	$(BIN)/pytest -q -m "not slow" -x --ignore=tests/pipelines tests

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --upgrade pip && $(BIN)/pip install --quiet -e '.[dev]' && touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .coverage
