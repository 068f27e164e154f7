# `make` lists what there is to make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
QUICK := runs/quickstart
REAL := runs/quickstart-real
RECIPES := bccd_blood cxr_lungboxes usgra_nerve_us dsb2018_nuclei kvasir_polyp

.PHONY: help setup quickstart quickstart-real test test-slurm test-transformers-4 lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# install VENV, CONSTRAINTS: this package, editable, with everything a developer needs. uv is an order of magnitude faster
# than pip, and doesn't read pip's settings.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet uv || echo "uv can't be had; pip will do"
	$(1)/bin/python -m uv --version >/dev/null 2>&1 \
	  && find_links="$${PIP_FIND_LINKS:-}" \
	  && UV_FIND_LINKS="$${UV_FIND_LINKS:-$${find_links// /,}}" UV_PYTHON_DOWNLOADS=never \
	     $(1)/bin/python -m uv pip install --quiet --python $(1)/bin/python --constraint $(2) --editable '.[dev]' \
	  || $(1)/bin/python -m pip install --quiet --constraint $(2) --editable '.[dev]'
	echo 'import medpclip._torchvision_hook' \
	  > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_medpclip_torchvision.pth"
endef

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@echo "installing into .venv"
	@$(call install,.venv,constraints.txt)
	@touch $@

setup: $(INSTALLED) ## install medpclip and its tools into .venv (PYTHON=python3.12 for another interpreter)

quickstart: $(QUICK)/export/export.json ## phantom images, training, evaluation, export: about ten minutes on two cores
	@cat $(QUICK)/eval/table.txt
	@echo "exported: $(QUICK)/export"

$(QUICK)/data/manifest.json: | $(INSTALLED)
	$(BIN)/medpclip data phantom --images 5000 --out $(QUICK)/data

$(QUICK)/trained: $(QUICK)/data/manifest.json
	$(BIN)/medpclip train launch/quickstart.yaml --resume
	@touch $@

$(QUICK)/eval/table.txt: $(QUICK)/trained
	@mkdir -p $(@D)
	$(BIN)/medpclip eval eval/phantom.yaml --model $(QUICK)/train --out $(QUICK)/eval > $@.part
	@mv $@.part $@

$(QUICK)/export/export.json: $(QUICK)/eval/table.txt
	$(BIN)/medpclip export clip-vision $(QUICK)/train --out $(QUICK)/export

quickstart-real: $(REAL)/export/export.json ## the same on real images: make quickstart-real DATA=DIR, one folder a source
	@cat $(REAL)/eval/table.txt
	@echo "exported: $(REAL)/export"

.PHONY: data-given
data-given:
	@[[ -n "$(DATA)" ]] || { echo "quickstart-real: DATA is missing; run: make quickstart-real DATA=DIR" >&2; exit 2; }
	@[[ -d "$(DATA)" ]] || { echo "quickstart-real: $(DATA): no such folder; check DATA" >&2; exit 2; }

$(RECIPES:%=$(REAL)/data/%/manifest.json): $(REAL)/data/%/manifest.json: | data-given $(INSTALLED)
	$(BIN)/medpclip data build $* --source "$(DATA)" --out $(REAL)/data/$*

$(REAL)/trained: $(RECIPES:%=$(REAL)/data/%/manifest.json)
	$(BIN)/medpclip train launch/quickstart-real.yaml --resume
	@touch $@

$(REAL)/eval/table.txt: $(REAL)/trained
	@mkdir -p $(@D)
	$(BIN)/medpclip eval eval/real.yaml --model $(REAL)/train --out $(REAL)/eval > $@.part
	@mv $@.part $@

$(REAL)/export/export.json: $(REAL)/eval/table.txt
	$(BIN)/medpclip export clip-vision $(REAL)/train --out $(REAL)/export

test: $(INSTALLED) ## the tests; those on real images need MEDPCLIP_DATA=DIR
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

test-slurm: $(INSTALLED) ## the job scripts under a real Slurm on this machine; installs one (Debian, as root)
	MEDPCLIP_SLURM=1 tests/slurm/with_slurm $(BIN)/python -m pytest -q --durations=5 tests/slurm

.venv-transformers-4/installed: setup.cfg constraints.txt
	@echo "installing into .venv-transformers-4"
	@mkdir -p build
	@{ grep -vE '^(transformers|tokenizers|huggingface-hub)==' constraints.txt; echo transformers==4.57.6; } > build/constraints-4.txt
	@$(call install,.venv-transformers-4,build/constraints-4.txt)
	@touch $@

test-transformers-4: .venv-transformers-4/installed ## the export tests under transformers 4.57
	HF_HUB_OFFLINE=1 .venv-transformers-4/bin/python -m pytest -q tests/export

lint: $(INSTALLED) ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## the benchmarks; with DATA=DIR, one folder a source, also that of building shards
	$(BIN)/python benchmarks/one_pass.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/loader.py speed
	$(BIN)/python benchmarks/loader.py order
	$(BIN)/python benchmarks/loader.py memory
	@[[ -z "$(DATA)" ]] || $(BIN)/python benchmarks/build.py --source "$(DATA)"

clean: ## remove the environments, caches and quickstart runs
	rm -rf .venv .venv-transformers-4 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(QUICK) $(REAL)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
