"""Insert a square peg with 1 mm clearance: clone to 30–50 % success, then OGPO+CA to above 97 %.

gcp-jax train --config=experiments/configs/peg_insert.py --config.seeds=3 --config.run_dir=runs/peg_insert
"""

import ml_collections

from experiments.tasks import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="peg_insert", algorithm="ogpo")
    config.demonstrations.quality = "mixed"
    config.pretrain.stop_at = 0.4
    config.pretrain.learning_rate = 1e-3
    config.pretrain.evaluate_every = 200
    return config
