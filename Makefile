# Each target does its own set-up in a fresh clone: a virtual environment in .venv, made again only when setup.cfg or pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 1
# A process of the tests' would compile all of torch's and transformers' sources anew, half of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup quickstart ablations test test-apps test-browser test-docs test-notebooks test-ray test-matrix test-resume test-gpu test-network fuzz lint types docs bench figure format clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## the virtual environment, with everything that the other targets need

quickstart: $(STAMP) ## fetch images, write scenes, train, and print what a visual prompt is worth
	env -u OMP_NUM_THREADS $(BIN)/virtue-pl quickstart

ablations: $(STAMP) ## after the quickstart: train its ablations, and print and plot what each part is worth
	env -u OMP_NUM_THREADS $(BIN)/virtue-pl ablations --plan configs/studies/ablations.yaml

test: $(STAMP) ## all tests but those below
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-apps: $(STAMP) ## encoding, searching and serving, and a small load on a server; ARGS="-k NAME" for some of its tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "apps and not ray" tests/apps tests/search tests/cli/commands $(ARGS)
	$(BIN)/python benchmarks/serve.py --small < /dev/null

test-browser: $(STAMP) ## the page in Debian's Chromium (sudo apt-get install chromium)
	$(BIN)/python -m pytest -q -m browser tests/browser $(ARGS)

test-docs: $(STAMP) ## every command and block of Python of the documentation, small; ARGS="-k NAME" for some
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "docs and not network" tests/docs $(ARGS)

test-notebooks: $(STAMP) ## the notebooks on small settings
	$(BIN)/python -m pytest -q -n 2 -m notebooks tests/integration $(ARGS)

test-ray: $(STAMP) ## encoding, indexing and searching on two nodes of Ray on this machine
	$(BIN)/python -m pytest -q -m ray tests/apps/encoding/test_ray_engine.py tests/search/test_ray_building.py tests/docs/test_cluster.py $(ARGS)

test-matrix: $(STAMP) ## every pair of a vision-language and a segmentation backbone; estimates and keys of every kind
	$(BIN)/python -m pytest -q -m "matrix or not matrix" tests/integration/matrix $(ARGS)
	$(BIN)/python -m pytest -q -n 2 -m matrix tests/integration/test_estimates.py tests/features/test_fingerprints.py $(ARGS)

test-resume: $(STAMP) ## runs that are stopped and go on, every pair of how and with what; ARGS=--all for every case
	PYTHONPATH=tests $(BIN)/python tests/resume/run.py $(ARGS)

test-gpu: $(STAMP) ## what runs on a GPU; skipped, with one line that says so, where there is none
	$(BIN)/python -m pytest -q -r fE -m gpu tests/gpu $(ARGS)

test-network: $(STAMP) ## the documented commands that download something, and the whole quickstart
	$(BIN)/python -m pytest -q -m network tests/docs $(ARGS)

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/python -m mypy

fuzz: $(STAMP) ## a minute of fuzzing: images, tars, parquet, JSON Lines, masks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py $(ARGS)

docs: $(STAMP) ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## what is measured, as JSON
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/stored_features.py
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/stream.py
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/bulk_encode.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/serve.py

figure: $(STAMP) ## after the quickstart: a figure of what its model says of boxes on a photograph
	env -u OMP_NUM_THREADS $(BIN)/python docs/figure.py --model runs/quickstart/virtue/checkpoints/last.ckpt

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# torch and torchvision first, as one pair: a torchvision from another build does not import beside it.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than 3.11; name a newer one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "make: virtual environments need one package more; run: sudo apt-get install -y python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[ablations,test,lint]'
	@touch $@
