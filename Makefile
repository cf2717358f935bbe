# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs what is missing.
VENV := .venv
BIN := $(VENV)/bin
SWIFT := .venv-swift

.PHONY: demo test test-chaos test-s3 test-infra test-browser lint bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# apart from ours, which must not get what Swift needs
$(SWIFT)/.installed: tests/servers/swift-constraints.txt
	test -x $(SWIFT)/bin/python || python3 -m venv $(SWIFT)
	$(SWIFT)/bin/pip install --quiet --disable-pip-version-check --constraint tests/servers/swift-constraints.txt swift
	touch $@

$(VENV)/.browser: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,browser]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo-out
	$(BIN)/lorif demo --out demo-out

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-chaos: $(VENV)/.installed
	$(BIN)/python -m pytest -m chaos --log-cli-level=WARNING

test-s3: $(VENV)/.installed $(SWIFT)/.installed
	LORIF_SWIFT=$(SWIFT) $(BIN)/python -m pytest -m swift

test-infra: $(VENV)/.installed
	$(BIN)/python -m pytest -m infra tests/infra

# needs Debian's chromium
test-browser: $(VENV)/.browser
	mkdir -p build/screenshots
	LORIF_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -m browser tests/browser

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.build
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.wikitext
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.serve

clean:
	rm -rf $(VENV) $(SWIFT) demo-out build *.egg-info
