"""Push a T to a pose with a round pusher: clone to about a third success, then OGPO+CA.

    gcp-jax train --config=experiments/configs/push_t.py --run_dir=runs/push_t

Expected: from 42 % to 93 % success (one seed), still rising; about 12 minutes on 2 CPU cores.
"""

import ml_collections

from gcp_jax.experiments.run_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="push_t", algorithm="ogpo")
    config.pretrain.stop_at_success = 0.35
    config.pretrain.evaluate_every = 200
    config.finetune.env_steps = 98_304
    config.evaluation.every = 12_288
    return config
