# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs what is missing.
VENV := .venv
BIN := $(VENV)/bin
SWIFT := .venv-swift
DEVICE := cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-deps --require-hashes

.PHONY: help demo test test-models test-chaos test-s3 test-infra test-browser lint docs bench lock clean
.DEFAULT_GOAL := help

help: ## print these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch is built for one device; its CPU build is in the index that pip is configured for, or in its own
$(VENV)/.installed: pyproject.toml constraints.txt constraints-dev.txt infra/torch-$(DEVICE).txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) --requirement infra/torch-$(DEVICE).txt 2>/dev/null || \
		$(BIN)/$(PIP_INSTALL) --requirement infra/torch-$(DEVICE).txt --index-url $(CPU_INDEX)
	$(BIN)/$(PIP_INSTALL) --requirement constraints.txt --requirement constraints-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch $@

# apart from ours, which must not get what Swift needs
$(SWIFT)/.installed: tests/servers/swift-constraints.txt
	test -x $(SWIFT)/bin/python || python3 -m venv $(SWIFT)
	$(SWIFT)/bin/$(PIP_INSTALL) --requirement tests/servers/swift-constraints.txt
	touch $@

demo: $(VENV)/.installed ## train a small model, build an index, ask it and write demo-out/report.html
	rm -rf demo-out
	$(BIN)/lorif demo --out demo-out

test: $(VENV)/.installed ## run the unit and integration tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-models: $(VENV)/.installed ## hold every causal architecture of transformers against autograd; writes their table
	$(BIN)/python -m pytest -n 2 -m models tests/models_sweep

test-chaos: $(VENV)/.installed ## kill builds a hundred times and run the longest other tests (most of an hour)
	$(BIN)/python -m pytest -m chaos --log-cli-level=WARNING

test-s3: $(VENV)/.installed $(SWIFT)/.installed ## run the tests against OpenStack Swift, which it installs
	LORIF_SWIFT=$(SWIFT) $(BIN)/python -m pytest -m swift

test-infra: $(VENV)/.installed ## run the install steps of the image and the services of the compose file
	$(BIN)/python -m pytest -m infra tests/infra

test-browser: $(VENV)/.installed ## run the pages in Chromium (needs Debian's chromium)
	mkdir -p build/screenshots
	LORIF_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -n 2 -m browser tests/browser

lint: $(VENV)/.installed ## check format, style, types, imports and the links of the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed ## build the documentation into build/site; a dead link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.installed ## run the benchmarks of build, memory, commands, latency and server
	$(BIN)/python -m benchmarks.build
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.wikitext
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.connections

lock: $(VENV)/.installed ## list all packages to install, with their hashes (CONTRIBUTING.md)
	PATH="$(abspath $(BIN)):$$PATH" infra/lock.sh

clean: ## remove what these targets have made
	rm -rf $(VENV) $(SWIFT) demo-out build *.egg-info
