# Everything runs on a CPU. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
VENV_4X := .venv-4x
JOBS ?= 2
QUIETLY := -qq --disable-pip-version-check
# One thread per test process: the processes share the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := -m pytest -q -n $(JOBS)
# What has to work on transformers 4.57 too: remote code, preprocessor, chat, hub and checkpoints.
TESTS_4X := $(wildcard tests/remote_code tests/model tests/preprocessor tests/chat tests/hub \
	tests/variants tests/repository tests/tokenizer tests/checkpoints tests/serving tests/adapters tests/cli)

.DEFAULT_GOAL := help
.PHONY: help setup setup-4x demo app test test-4x test-slow check docs bench bench-full

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 12

# Stamps: an environment is made again only when its pins change.
$(VENV)/.installed: requirements/v5.txt requirements/app.txt
$(VENV_4X)/.installed: requirements/v4.txt
$(VENV)/.installed $(VENV_4X)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing $(filter requirements/%,$^) into $(@D)"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install $(QUIETLY) -r $(filter requirements/v%,$^)
	$(@D)/bin/python -m pip install $(QUIETLY) --no-deps -e . $(addprefix -r ,$(filter requirements/app%,$^))
	@touch $@

setup: $(VENV)/.installed ## make .venv (transformers 5.23.0)

setup-4x: $(VENV_4X)/.installed ## make .venv-4x (transformers 4.57.6)

demo: setup ## ask the demo checkpoint about the example images
	$(VENV)/bin/python -m internvl.demo

app: setup ## chat in the browser: http://127.0.0.1:7860
	$(VENV)/bin/python -m internvl.app

test: setup ## run the tests on transformers 5.23.0 (JOBS=2 processes)
	$(TEST_ENV) $(VENV)/bin/python $(PYTEST)

test-4x: setup-4x ## run the tests of remote code, chat, hub and checkpoints on transformers 4.57.6
	$(TEST_ENV) $(VENV_4X)/bin/python $(PYTEST) $(TESTS_4X)

test-slow: setup ## run the tests that take minutes
	$(TEST_ENV) $(VENV)/bin/python $(PYTEST) -m slow

check: setup ## lint, format, types, import policy, hashes of the remote code
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m internvl.checkpoints.code_hashes --check
	$(TEST_ENV) $(VENV)/bin/python -m pytest -q tests/test_policy.py

docs: setup ## build the documentation site: build/site/index.html
	$(VENV)/bin/python -m sphinx -W --keep-going -q -d build/doctrees -b html docs build/site
	@echo "build/site/index.html"

# import_time.py has no reduced size.
BENCHMARKS := preprocess vit prefill turns samples batch decode end_to_end load packing filtering

bench: setup ## run every benchmark at reduced depth (25 minutes), one line of JSON each
	@set -e; $(VENV)/bin/python benchmarks/import_time.py --json; \
	for name in $(BENCHMARKS); do \
		echo "# $$name" >&2; $(VENV)/bin/python benchmarks/$$name.py --json $(BENCH_OPTIONS); \
	done

bench-full: ## the same at full depth, for the published table (hours on a CPU)
	@$(MAKE) --no-print-directory bench BENCH_OPTIONS=--full
