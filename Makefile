# Every target brings its own environment: .venv, made with the standard library's venv and filled from
# requirements.lock with checked hashes. It is made once and again only when the lock or a pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The first interpreter that will do; name another one with `make PYTHON=/path/to/python`.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$python -c '$(SUPPORTED)' 2>/dev/null; then echo $$python; break; fi; done)

# For example: make test PYTEST_ARGS='-k lease -x', make demo DEMO_ARGS='--accounts 100'.
PYTEST_ARGS ?=
# One process of tests for each core, each with servers of its own: with more of them, whole fleets would share a core, and
# what they are judged by is time. PYTEST_WORKERS=0 runs them in one, for a debugger.
PYTEST_WORKERS ?= logical
DEMO_ARGS ?=
UP_ARGS ?=
BENCH_ARGS ?=
CHAOS_ARGS ?=
DRILLS_ARGS ?=
LOCK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-system check lint types format docs bench chaos chaos-short drills drills-short drills-receivers lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' Makefile | \
	while read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(STAMP) ## run a whole fleet against the sandbox provider for some minutes, and judge it by its ledger
	@$(BIN)/tokenfleet demo $(DEMO_ARGS)

up: $(STAMP) ## run a whole fleet on this machine until Ctrl-C
	@$(BIN)/tokenfleet up $(UP_ARGS)

# Bytecode is kept whatever the environment says: else each process compiles every test anew, 15 s of CPU each time.
test: $(STAMP) ## run all tests against real servers
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-system: $(STAMP) ## only the tests that run whole fleets
	@$(BIN)/python -m pytest tests/system $(PYTEST_ARGS)

check: lint types ## format, lint, import contracts, types

lint: $(STAMP) ## the fast half of check: format, lint, import contracts
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports

types: $(STAMP) ## mypy --strict over everything
	@$(BIN)/mypy

format: $(STAMP) ## rewrite the sources as `check` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP) ## write docs/providers.md and providers/schema.json anew from what they are made of
	@$(BIN)/python -m providers.schema
	@$(BIN)/python -m providers.page

bench: $(STAMP) ## measure refreshes per second beside a naive fleet and the floor
	@$(BIN)/python bench/refresh_throughput.py $(BENCH_ARGS)

chaos: $(STAMP) ## break the fleet in every way for ten minutes, and judge it by the ledger
	@$(BIN)/python -m chaos $(CHAOS_ARGS)

chaos-short: $(STAMP) ## the same in two minutes
	@$(BIN)/python -m chaos --seconds 100 --accounts 2000 $(CHAOS_ARGS)

drills: $(STAMP) ## let providers fail in every way on 10,000 accounts, and judge it by their record
	@$(BIN)/python -m drills $(DRILLS_ARGS)

drills-short: $(STAMP) ## the same in two minutes
	@$(BIN)/python -m drills --short $(DRILLS_ARGS)

drills-receivers: $(STAMP) ## let receivers of webhooks misbehave in every way, and see who notices, in three minutes
	@$(BIN)/python -m drills.receivers $(DRILLS_ARGS)

lock: $(STAMP) ## write requirements.lock anew (LOCK_ARGS=--upgrade takes newer versions)
	@$(PIP) install 'uv>=0.9'
	@$(BIN)/uv pip compile pyproject.toml client/pyproject.toml --all-extras --quiet \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-package tokenfleet --no-emit-package tokenfleet-client \
		--custom-compile-command 'make lock' --output-file requirements.lock $(LOCK_ARGS)
	@echo 'requirements.lock is up to date'

clean: ## remove .venv, caches and build results; data in TOKENFLEET_HOME stays
	@rm -rf $(VENV) dist client/dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(STAMP) ## only make the environment in .venv

# Some systems package ensurepip apart from Python; there an installed pip can equip the environment as well.
$(BIN)/python:
	@python='$(PYTHON)'; \
	if ! "$${python:-python3}" -c '$(SUPPORTED)' 2>/dev/null; then \
		echo "Tokenfleet needs Python 3.11 to 3.14, and $${python:-python3} is none of them: install one, or name it with 'make PYTHON=/path/to/python3.12'." >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		"$$python" -m venv --clear $(VENV); \
	else \
		"$$python" -m venv --clear --without-pip $(VENV) 2>/dev/null && \
		"$$python" -m pip --quiet --python $@ install pip 2>/dev/null; \
	fi || { \
		rm -rf $(VENV); \
		echo "$$python cannot make virtual environments: install its venv module (on Debian and Ubuntu the package python3-venv), or name another Python with 'make PYTHON=/path/to/python3.12'." >&2; \
		exit 1; \
	}

$(STAMP): $(BIN)/python requirements.lock pyproject.toml client/pyproject.toml
	@echo "Installing $$(grep -c '^[a-z].*==' requirements.lock) locked packages into $(VENV); the first time takes about a minute"
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable client --editable .
	@touch $@
