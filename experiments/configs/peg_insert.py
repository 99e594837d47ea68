"""Insert a square peg with 1 mm total clearance: clone to about a third success, then OGPO+CA.

    gcp-jax train --config=experiments/configs/peg_insert.py --config.seeds=3 --run_dir=runs/peg

Expected: from 36 % to 98.8 % success on each of three seeds; about 4 minutes for one seed on 2 CPU
cores.
"""

import ml_collections

from gcp_jax.experiments.run_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="peg_insert", algorithm="ogpo")
    config.pretrain.stop_at_success = 0.35
    config.pretrain.evaluate_every = 200
    config.finetune.env_steps = 36_864
    config.evaluation.every = 6_144
    return config
