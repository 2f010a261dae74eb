# Every target is an ordinary command; `make demo` and `make test` set up their environment themselves.
PYTHON ?= python3
BIN = .venv/bin
# One thread per worker: with more, the workers' threads wait for each other. Files in their own order: by
# number of tests the few that take longest would come last, one worker waiting for another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
	--doctest-modules

.PHONY: demo test test-all test-browser quick lint types format clean

demo: .venv/ready
	$(BIN)/vae-anomaly demo

test: lint types
	$(PYTEST) -m "not slow" --cov --cov-report=term

test-all: lint types
	$(PYTEST) --cov --cov-report=term

test-browser: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/serving/test_page_browser.py

quick: .venv/ready
	$(PYTEST) -m "not slow and not browser" -x tests/serving tests/vae_anomaly/test_[b-l]*.py tests/vae_anomaly/test_[o-r]*.py

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
