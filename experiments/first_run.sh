#!/usr/bin/env bash
# A first run on a machine that has only Python: install, clone a poor policy, finetune it and
# write the report. Further arguments are passed to `gcp-jax train`, e.g. --config.seeds=3
set -euo pipefail
cd "$(dirname "$0")/.."
. experiments/venv.sh ""
exec "$venv/bin/gcp-jax" train --config=experiments/configs/peg_insert.py \
  --run_dir=runs/first --config.data_parallel=2 "$@"
