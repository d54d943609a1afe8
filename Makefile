# make demo   a prompt becomes an enlarged video, on the CPU
# make test   every test and every notebook
# make lab    JupyterLab in notebooks/
# make notebooks   every notebook run again, its outputs stored and cleaned
# The first of them makes .venv and installs into it; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
PROMPT ?= Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street.

BIN := .venv/bin
INSTALLED := .venv/installed
# The threads of two pytest workers would fight over the same cores; the tests need no network.
QUIET := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test lab notebooks

demo: $(INSTALLED)
	$(BIN)/python -m t2v_kit "$(PROMPT)" --out runs/demo

test: $(INSTALLED)
	$(BIN)/ruff check
	$(QUIET) $(BIN)/python -m pytest tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
		-n 2 --dist loadfile --durations=15 -rs

lab: $(INSTALLED)
	cd notebooks && ../$(BIN)/jupyter lab

notebooks: $(INSTALLED)
	$(QUIET) $(BIN)/python notebooks/regenerate.py

# setuptools first, and no build isolation: otherwise basicsr (under realesrgan) downloads a second torch to be built.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, for example: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install "setuptools>=77.0.3"
	$(BIN)/pip install --no-build-isolation --use-pep517 -r requirements.txt -e .
	touch $@
