#!/usr/bin/env bash
# Every check of the project on a machine that has only Python: one file more at a time than it has cores, since some wait for
# processes of their own, and four at most. Without arguments coverage is measured too, and must hold; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. experiments/venv.sh "[test]"
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
"$venv/bin/python" -m mypy
[ $# -gt 0 ] || set -- --cov --cov-report=term
workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
exec "$venv/bin/python" -m pytest --numprocesses="$workers" --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
