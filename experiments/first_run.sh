#!/usr/bin/env bash
# The main job on a machine that has only Python: install, clone a poor policy, finetune it, write the report.
# Further arguments go to `gcp-jax train`, e.g.  --config.seeds=3
set -euo pipefail
cd "$(dirname "$0")/.."
. experiments/venv.sh ""
exec "$venv/bin/gcp-jax" train --config=experiments/configs/peg_insert.py --config.run_dir=runs/first --config.data_parallel=2 "$@"
