# make demo   install, write the hospital, and make its model forget a patient
# make test   what a change has to pass
# make bench  the figures of benchmarks/results/, again

PYTHON ?= python3
# Installed first and by itself: pip takes the build this machine is set up for, and the rest is content with it.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test bench clean

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	@touch $@

.venv/run: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ .venv/run

demo: .venv/run
	$(BIN)/chip demo hospital --overwrite
	$(BIN)/chip edit hospital/ckpt --forget patient_17 --overwrite

# The site, into site/; a warning is an error. `.venv/bin/mkdocs serve` shows it while it is written.
.PHONY: docs
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/docs: .venv/run pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

test: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

bench: .venv/dev
	for name in startup projection collect patch; do \
		$(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.demo

clean:
	rm -rf .venv hospital
