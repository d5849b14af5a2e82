#!/usr/bin/env bash
# The wheels of data-requirements.lock, for the environment that `snakemake --sdm conda` makes of bilevel.yaml. They are
# named here again because the script runs in another folder, and because an edit of it makes the environment anew.
set -euo pipefail

python -m pip download --require-hashes --no-deps --only-binary=:all: --ignore-requires-python \
    --dest "$CONDA_PREFIX/wheels" --requirement /dev/stdin <<'LOCK'
homeassistant==2024.12.5 \
    --hash=sha256:a7b3e13ac8c2b93a79807c51e3715b36c8459c9cbddb8bf448d69d18a49b703d
LOCK
