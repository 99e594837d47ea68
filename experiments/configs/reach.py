"""Go round a disc to a goal, without a physics engine: the whole path in about two minutes; for first looks and tests.

The command:

    gcp-jax train --config=experiments/configs/reach.py --config.run_dir=runs/reach
"""

import ml_collections

from experiments.tasks import defaults, vectorised


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="reach", algorithm="ogpo")
    vectorised(config)
    config.pretrain.stop_at = 0.35
    config.pretrain.evaluate_every = 50
    config.policy.hidden = (64, 64)
    config.algorithm.critic_hidden = (64, 64)
    config.finetune.env_steps = 32_768
    config.finetune.warmup_steps = 4_096
    config.evaluation.every = 4_096
    return config
