# make demo: the three stages on the embedded digits and their table. make test: the fast tests; with CI=1
# the full ones, with ALL=1 everything.
PYTHON ?= python3
RUN := .venv/bin/python
# Two processes with many threads each would fight for the same cores.
export OMP_NUM_THREADS ?= 1

.PHONY: venv demo test lint docs clean

venv: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "import ensurepip, venv" || \
		{ echo "error: PYTHON=$(PYTHON) cannot make a virtual environment: install its venv module" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev,docs]"
	touch $@

demo: venv
	rm -rf demo_results
	$(RUN) -m hybridprune demo demo_results

test: venv
	$(RUN) -m pytest -q -n 2 --dist worksteal $(if $(ALL),-m "",$(if $(CI),-m "not exhaustive"))

lint: venv
	.venv/bin/ruff check
	.venv/bin/pyright
	.venv/bin/lint-imports

# The site in site/; a warning is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis demo_results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
