# make demo        a prompt becomes an enlarged video, on the CPU
# make check       a minute: lint, format, types, contracts, and the quickest tests
# make test        every test and every notebook
# make lab         JupyterLab, opened at notebooks/
# make notebooks   every notebook run again, its outputs stored and cleaned
# make figures     the figures in README, the card and docs, filled from what was measured
# make colab       the Colab editions of the notebooks
# make docs        the documentation as a site, docs/_build/index.html
# The first of them makes .venv and installs into it; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
PROMPT ?= Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street.

BIN := .venv/bin
# What a Colab machine has of these; three of the editions are tested with them.
COLAB := ipywidgets==7.7.1 ipython==7.34.0 ipykernel==6.17.1 ipython-genutils==0.2.0 backcall==0.2.0 \
	pickleshare==0.7.5 nest-asyncio==1.5.8 decorator==5.1.1
INSTALLED := .venv/installed
TESTED := .venv/installed-for-tests
# setuptools first, and no build isolation: otherwise basicsr (under realesrgan) downloads a second torch to be built.
PIP := $(BIN)/pip install --no-build-isolation --use-pep517
# The threads of two pytest workers would fight over the same cores; the tests need no network.
QUIET := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
# T2V_SHORT: the notebooks that train do it for a few steps.
PYTEST := $(QUIET) T2V_SHORT=1 $(BIN)/python -m pytest -n 2

.PHONY: demo check test lab notebooks figures colab docs

demo: $(INSTALLED)
	$(BIN)/t2v "$(PROMPT)" --out runs/demo

check: $(TESTED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python t2v_kit
	$(BIN)/lint-imports
	$(PYTEST) -q tests/test_house.py tests/test_settings.py tests/test_view.py tests/test_diagram.py tests/test_measure.py

test: $(TESTED) .venv/colab
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python t2v_kit
	$(PYTEST) tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --dist loadfile --no-loadscope-reorder \
		--durations=15 -rs

lab: $(INSTALLED)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

notebooks: $(INSTALLED)
	$(QUIET) $(BIN)/python notebooks/regenerate.py

figures: $(INSTALLED)
	$(BIN)/python -m benchmarks.figures --write

colab: $(INSTALLED)
	$(BIN)/python colab/build.py

docs: $(TESTED)
	$(BIN)/python -m sphinx -W -q -c docs . docs/_build

.venv/colab: $(INSTALLED)
	$(BIN)/pip install --quiet --upgrade --target $@ --no-deps $(COLAB)
	touch $@

$(TESTED): requirements-test.txt $(INSTALLED)
	$(PIP) -r requirements-test.txt
	touch $@

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, for example: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install "setuptools>=77.0.3"
	$(PIP) -r requirements.txt -e .
	touch $@
