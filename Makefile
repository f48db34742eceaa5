# Everything here needs Python 3.11, make and pip only; all else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO_BUNDLE := bundle-demo
DEMO_CLIP = $$($(BIN)/python -c "from nas.dataset import load; \
	scenes = load('synthetic-scenes'); \
	print(next(scenes.root / clip.path for clip in scenes.clips if clip.split == 'test'))")

.PHONY: help demo test lint check bench clean

help: ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: .venv/.installed ## search, look at the front, export one network and run it
	$(BIN)/nas search demo
	$(BIN)/nas front demo
	$(BIN)/nas report demo
	$(BIN)/nas export demo --max-kb 64 --out $(DEMO_BUNDLE)
	@clip=$(DEMO_CLIP) && set -x && $(BIN)/python $(DEMO_BUNDLE)/predict.py "$$clip"

test: .venv/.installed-dev ## run the tests; SLOW=1 runs the slow ones too
	$(BIN)/pytest -n 2 --dist loadfile $(if $(SLOW),-m "")

lint: .venv/.installed-dev ## format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	bash -n .ci/run

check: lint test ## all that must pass before a change is handed in

bench: .venv/.installed-dev ## measure and write docs/benchmarks.md; ONLY=name takes one subject
	$(BIN)/python tests/bench $(ONLY)

clean: ## remove the environment and caches; studies and bundles stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without ensurepip, which Debian's python3 lacks: the pip at hand installs into the new .venv.
.venv/bin/pip:
	@echo "Creating .venv"
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet pip

.venv/.installed: pyproject.toml | .venv/bin/pip
	@echo "Installing nas into .venv: about 6 GB with torch, some minutes"
	@$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the tools of the tests into .venv"
	@$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
