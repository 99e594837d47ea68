#!/usr/bin/env bash
# The checks of the project, on a machine that has only Python.
#
#   bash tests/run.sh               the everyday check: lint, types, import contracts, fast tests
#   bash tests/run.sh --all         everything: slow tests, tests with processes, coverage, documentation
#   bash tests/run.sh ARGUMENTS     lint and types, then pytest with these arguments
#
# One pytest worker more than there are cores, because some tests wait for processes; four at most.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="[test]"
if [ "${1:-}" = "--all" ]; then
  extras="[test,docs]"
fi
. experiments/venv.sh "$extras"
bin=$venv/bin
"$bin/python" -m ruff check .
"$bin/python" -m ruff format --check .
"$bin/python" -m mypy &
types=$!
"$bin/lint-imports" --no-logo
if [ "${1:-}" = "--all" ]; then
  "$bin/mkdocs" build --strict --quiet --site-dir build/site
fi
wait "$types"
workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
pytest=("$bin/python" -m pytest --numprocesses="$workers" --maxprocesses=4 --dist=loadfile
  --no-loadscope-reorder)
if [ "${1:-}" = "--all" ]; then
  shift
  exec "${pytest[@]}" -m "" --cov --cov-report=term "$@"
fi
exec "${pytest[@]}" "$@"
