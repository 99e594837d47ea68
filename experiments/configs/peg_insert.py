"""Insert a square peg with 1 mm total clearance: clone to about a third success, then OGPO+CA to above 97 %.

    gcp-jax train --config=experiments/configs/peg_insert.py --config.seeds=3 --config.run_dir=runs/peg_insert

Expected: 36 % -> 98.8 % on each of three seeds; on 2 CPU cores about 4 minutes for one seed.
"""

import ml_collections

from gcp_jax.experiments.assemble import apply_many_env_preset, defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="peg_insert", algorithm="ogpo")
    apply_many_env_preset(config)
    config.pretrain.stop_at_success = 0.35
    config.pretrain.evaluate_every = 200
    config.finetune.env_steps = 36_864
    config.evaluation.every = 6_144
    return config
