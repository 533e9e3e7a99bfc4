PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint docs wheel clean

train: .venv/installed
	$(BIN)/python experiments/navigation_2d.py --resume

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# A type checker wants maml_rl.envs where it is imported from: a tree of links shows it there.
	mkdir -p build/types && rm -rf build/types/maml_rl && mkdir build/types/maml_rl
	ln -s $(CURDIR)/maml_rl/* $(CURDIR)/envs build/types/maml_rl/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml maml_rl

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: .venv/installed
	.ci/wheel

# The stamp is written last, so an interrupted installation is repeated.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
