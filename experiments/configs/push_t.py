"""Push a T to a pose with a round pusher: clone to about a third success, then OGPO+CA.

    gcp-jax train --config=experiments/configs/push_t.py --config.run_dir=runs/push_t

Expected: 42 % -> 93 % (one seed), still rising; on 2 CPU cores about 12 minutes.
"""

import ml_collections

from gcp_jax.experiments.assemble import apply_many_env_preset, defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="push_t", algorithm="ogpo")
    apply_many_env_preset(config)
    config.pretrain.stop_at_success = 0.35
    config.pretrain.evaluate_every = 200
    config.finetune.env_steps = 98_304
    config.evaluation.every = 12_288
    return config
