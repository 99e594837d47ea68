"""Go round a disc to a goal, without a physics engine: the whole path in about two minutes; for first looks and tests.

gcp-jax train --config=experiments/configs/reach.py --config.run_dir=runs/reach
"""

import ml_collections

from experiments.tasks import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="reach", algorithm="ogpo")
    config.demonstrations.quality = "mixed"
    config.pretrain.stop_at = 0.35
    config.pretrain.learning_rate = 1e-3
    config.pretrain.evaluate_every = 50
    config.policy.hidden = (64, 64)
    config.algorithm.critic_hidden = (64, 64)
    config.algorithm.gamma = 0.97
    config.algorithm.critic_lr = 1e-3
    config.algorithm.critic_ema = 0.05
    config.algorithm.critic_warmup = 256
    config.algorithm.actor_ema = 0.02
    config.algorithm.chains = 8
    config.finetune.utd = 0.125
    config.finetune.env_steps = 32_768
    config.finetune.warmup_steps = 4_096
    config.evaluation.every = 4_096
    return config
