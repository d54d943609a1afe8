# make demo   a prompt becomes an enlarged video, on the CPU
# make test   every test and every notebook
# make lab    JupyterLab in notebooks/
# make notebooks   every notebook run again, its outputs stored and cleaned
# make colab       the Colab editions of the notebooks
# The first of them makes .venv and installs into it; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
PROMPT ?= Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street.

BIN := .venv/bin
# What a Colab machine has of these; three of the editions are tested with them.
COLAB := ipywidgets==7.7.1 ipython==7.34.0 ipykernel==6.17.1 ipython-genutils==0.2.0 backcall==0.2.0 \
	pickleshare==0.7.5 nest-asyncio==1.5.8 decorator==5.1.1
INSTALLED := .venv/installed
# The threads of two pytest workers would fight over the same cores; the tests need no network.
QUIET := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test lab notebooks colab

demo: $(INSTALLED)
	$(BIN)/python -m t2v_kit "$(PROMPT)" --out runs/demo

test: $(INSTALLED) .venv/colab
	$(BIN)/ruff check
	$(QUIET) $(BIN)/python -m pytest tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
		-n 2 --dist loadfile --durations=15 -rs

lab: $(INSTALLED)
	cd notebooks && ../$(BIN)/jupyter lab

notebooks: $(INSTALLED)
	$(QUIET) $(BIN)/python notebooks/regenerate.py

colab: $(INSTALLED)
	$(BIN)/python colab/build.py

.venv/colab: $(INSTALLED)
	$(BIN)/pip install --quiet --upgrade --target $@ --no-deps $(COLAB)
	touch $@

# setuptools first, and no build isolation: otherwise basicsr (under realesrgan) downloads a second torch to be built.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, for example: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install "setuptools>=77.0.3"
	$(BIN)/pip install --no-build-isolation --use-pep517 -r requirements.txt -e .
	touch $@
