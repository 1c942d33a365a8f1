PYTHON ?= python3.11
BIN = .venv/bin

.PHONY: test sweep demo clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,cli]'
	touch $@

test: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

sweep: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.recipes.sweep

demo: .venv/installed
	@echo '== without the shim'
	-@$(BIN)/python examples/generate_in_callback.py
	@echo '== with the shim'
	@$(BIN)/python examples/generate_in_callback.py --shim

clean:
	rm -rf .venv build dist *.egg-info
