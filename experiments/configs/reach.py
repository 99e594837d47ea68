"""Go round a disc to a goal, without a physics engine: a whole run in about two minutes.

    gcp-jax train --config=experiments/configs/reach.py --run_dir=runs/reach

For first looks and for tests.
"""

import ml_collections

from gcp_jax.experiments.run_config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="reach", algorithm="ogpo")
    config.pretrain.stop_at_success = 0.35
    config.pretrain.evaluate_every = 50
    config.policy.hidden = (64, 64)
    config.algorithm.critic_hidden = (64, 64)
    config.finetune.env_steps = 32_768
    config.finetune.learning_starts = 4_096
    config.evaluation.every = 4_096
    return config
