#!/usr/bin/env bash
# Every check of the project on a machine that has only Python: up to four files at once. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. experiments/venv.sh "[test]"
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
"$venv/bin/python" -m mypy
exec "$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
