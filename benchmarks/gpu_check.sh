#!/usr/bin/env bash
# All checks that need a real GPU, in under 8 minutes on one card: one table on the screen, one JSON file.
#
#     benchmarks/gpu_check.sh [--output gpu_check.json] [--minutes 8] [--data_dir DATA]
#     benchmarks/gpu_check.sh --device cpu --minutes 1 --only 'step:*'     # a rehearsal; see --help
#
# It needs no network, and takes PYTHON, else the repository's .venv, else python3, which must have the packages of
# requirements.txt. What is done is said in benchmarks/gpu_check/__main__.py.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x $root/.venv/bin/python ]] && PYTHON=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m benchmarks.gpu_check "$@"
