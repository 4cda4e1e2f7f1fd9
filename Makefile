# make demo       install, write the hospital, and make its model forget a patient
# make test       what a change has to pass: five minutes on two cores
# make test-all   the same, then what takes long, and the oldest transformers that is supported
# make docs       the site, into site/
# make bench      the figures of benchmarks/results/, again
# make lock       the newest versions that pyproject.toml allows, written into constraints*.txt

PYTHON ?= python3
# Which build of torch: pip takes the one this machine is set up for, and the rest is content with it.
TORCH ?= $(shell grep '^torch==' constraints.txt)
OLDEST := transformers==5.17.0
BIN := .venv/bin
# Half of the time goes into bytecode, most of it of modules that nobody imports: the others get theirs when imported.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
# A worker a core, with one thread each. Tests of one file share what they build, so they stay in one worker.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-oldest test-all bench lock clean

.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt "$(TORCH)"
	@touch $@

.venv/run: .venv/torch pyproject.toml
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt --editable .
	@touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt --editable ".[dev]"
	@touch $@ .venv/run

.venv-oldest/dev: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP_INSTALL) -c constraints-oldest.txt "$(TORCH)"
	.venv-oldest/bin/python $(PIP_INSTALL) -c constraints-oldest.txt --editable ".[dev]"
	@touch $@

demo: .venv/run
	$(BIN)/chip demo hospital --overwrite
	$(BIN)/chip edit hospital/ckpt --forget patient_17 --overwrite

# The site, into site/; a warning is an error. `.venv/bin/mkdocs serve` shows it while it is written.
.PHONY: docs
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/docs: .venv/run pyproject.toml
	$(BIN)/python $(PIP_INSTALL) --editable ".[docs]"
	@touch $@

test: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -m "not slow" $(PARALLEL) --no-loadscope-reorder

# Files with many tests first, so that none of them is left to one worker at the end.
test-slow: .venv/dev
	$(BIN)/pytest -m slow $(PARALLEL)

# Each family's names, passes and edits: what depends on transformers.
test-oldest: .venv-oldest/dev
	.venv-oldest/bin/pytest -m "not slow" $(PARALLEL) --no-loadscope-reorder $(addprefix tests/test_,families.py tensor_names.py target_modules.py offload.py streaming.py edit.py)

test-all: test test-slow test-oldest

bench: .venv/dev
	for name in projection collect patch; do \
		$(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json || exit 1; \
	done
	$(BIN)/python -m benchmarks.demo

# In new environments, so that nothing old stays; torch as before, unless TORCH names another. Its build ("+cpu") is left
# out, since other machines take others; and certifi, whose newest list of roots is the right one anywhere.
lock:
	for version in "" "-oldest $(OLDEST)"; do \
		set -- $$version; rm -rf .venv-lock; $(PYTHON) -m venv .venv-lock && \
		.venv-lock/bin/python $(PIP_INSTALL) "$(TORCH)" && \
		.venv-lock/bin/python $(PIP_INSTALL) --editable ".[dev]" "$(TORCH)" $$2 && \
		echo "# What the tests ran with, by \`make lock\`; pyproject.toml allows more." > .venv-lock/versions && \
		.venv-lock/bin/python -m pip freeze --exclude-editable --exclude certifi | sed 's/+.*//' >> .venv-lock/versions && \
		mv .venv-lock/versions constraints$$1.txt || exit 1; \
	done
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-oldest .venv-lock hospital
