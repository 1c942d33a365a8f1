PYTHON ?= python3.11
BIN = .venv/bin
# The demo's steps are not to drown in third parties' advice on a toy.
QUIET = PYTHONWARNINGS=ignore TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1

.PHONY: test quick sweep sweep-check bench matrix matrix-check can-go engines cuda torch engine programs docs lint package demo clean

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,cli,matrix,docs]'
	touch $@

# On every core; a file's tests stay together, since some share what is slow to make.
SELECTION = tests/recipes/test_sweep_selection.py
PYTEST = pytest -n auto --dist loadfile --no-loadscope-reorder
# With COVERAGE=1 the branches that are taken are counted, in the processes that the tests start as well; fails below 95 %.
# A line's reason to be left out is in it, or in setup.cfg.
test: .venv/installed
	$(if $(COVERAGE),rm -rf build/coverage && mkdir -p build/coverage)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m $(if $(COVERAGE),coverage run -m )$(PYTEST) --ignore $(SELECTION) $(TESTS)
	$(if $(COVERAGE),$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# For who changes a line, under a minute: each patch on real layers, the watch, what is told; no process, compiler or sweep.
QUICK = tests/engine tests/numerics/test_mode.py tests/test_rooms.py tests/repository/test_api.py \
	$(patsubst %,tests/patches/test_%.py,linear4bit linear8bit lora boundary attention watching run_again checkpointing) \
	$(patsubst %,tests/inspection/test_%.py,trace report assertions casts) tests/recipes/test_late.py
quick: .venv/installed
	$(BIN)/ruff check --quiet .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m $(PYTEST) --quiet $(QUICK)

# The sdist and the wheel, in dist/, as pip builds them
package: .venv/installed
	$(BIN)/nox -s package

# What the tests say on CUDA: on an emulated GPU, or, with DEVICE=cuda, on a real one
cuda: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.cuda $(or $(DEVICE),emulated)

sweep: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m sweep

# An architecture of each kind
sweep-check: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SELECTION)

bench: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

# All stacks that users pin; one of them: make matrix STACK=transformers-4.51
matrix: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox -s "matrix$(if $(STACK),($(STACK)))" $(if $(STACK),,-k 'not torch')

# Older releases of torch; one of them: make matrix STACK=torch-2.4
torch: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox -k torch

# The engine alone, with every Python that is found and older releases of wrapt
engine: .venv/installed
	$(BIN)/nox -s engine

# A few of them are checked beside the tests: what users pin today, and what pip gives them.
CHECKED = transformers-4.51 transformers-4.57 newest
matrix-check: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox -s $(foreach stack,$(CHECKED),"matrix($(stack))") -- \
		--check --only status failure contracts --contracts linear4bit linear8bit lora older_transformers

# Whether a patch can go with what pip gives today: of each the defect is run, unpatched
can-go: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox -s "matrix(newest)" -- --check --only status
	HF_HUB_OFFLINE=1 .venv/matrix/matrix-newest/bin/python -m pytest -o filterwarnings=default tests/doctor/test_needed.py

# Engines of more than one process; one of them: make engines ENGINE=ZeRO-3
engines: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox -s engines --envdir .venv/engines -- $(if $(ENGINE),"$(ENGINE)")
	$(BIN)/python -m tests.distributed.page --write

# The programs of docs/programs.md, each in an environment of its own; one of them: make programs PROGRAM=trl
programs: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/nox --envdir .venv/programs -s "programs$(if $(PROGRAM),($(PROGRAM)))"

# The site, in build/site
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

demo: .venv/installed
	@echo '== without the shim: training goes on, and every generate() of the callback fails'
	@$(QUIET) $(BIN)/python examples/generate_in_callback.py || true
	@echo '== with the shim'
	@$(QUIET) $(BIN)/python examples/generate_in_callback.py --shim

clean:
	rm -rf .venv build dist *.egg-info
