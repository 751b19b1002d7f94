# make demo: the three stages on the embedded digits and their table. make test: the fast tests; all of them with CI=1.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --dataset digits --resize 16 --depth 14 --width 16 --bs 64 --scheduler_id up-down --result_dir demo_results
# Two processes with many threads each would fight for the same cores.
export OMP_NUM_THREADS ?= 1

.PHONY: venv demo test lint clean

venv: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c "import ensurepip, venv" || \
		{ echo "error: PYTHON=$(PYTHON) cannot make a virtual environment: install its venv module" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: venv
	rm -rf demo_results
	$(RUN) main_sp.py $(DEMO) --epochs 12 --lr 0.1 --alpha 0.1 --scheduler_params '{"0": 0.2, "0.2": 1, "1": 0}'
	$(RUN) main_prune.py $(DEMO) --target_flops 0.5 --epochs_start 6 --epochs_end 6 --lr 0.02 --alpha 0.1 \
		--curvature_images 1024 --scheduler_params '{"0": 0.2, "0.2": 1, "1": 0}'
	$(RUN) main_rl_prune.py $(DEMO) --epochs 12 --lr 0.005 --alpha 1 --rl_weight 1 --rl_warmup 0.33 \
		--gate_lr_factor 20 --temperature 3 --scheduler_params '{"0": 0.1, "0.3": 1, "1": 0.02}'
	@$(RUN) -m hybridprune.report demo_results --html demo_results/report.html
	@$(RUN) -m hybridprune.report demo_results
	@echo "the page: demo_results/report.html"

test: venv
	$(RUN) -m pytest -q -n 2 --dist worksteal $(if $(CI),-m "")

lint: venv
	.venv/bin/ruff check
	.venv/bin/pyright
	.venv/bin/lint-imports

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis demo_results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
