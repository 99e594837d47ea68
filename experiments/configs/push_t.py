"""Push a T to a pose with a round pusher: clone to about a third success, then OGPO+CA to above 90 %.

    gcp-jax train --config=experiments/configs/push_t.py --config.run_dir=runs/push_t

The settings are those of ``peg_insert.py``.
"""

import ml_collections

from experiments.tasks import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="push_t", algorithm="ogpo")
    config.demonstrations.quality = "mixed"
    config.pretrain.stop_at = 0.35
    config.pretrain.learning_rate = 1e-3
    config.pretrain.evaluate_every = 200
    config.algorithm.gamma = 0.97
    config.algorithm.critic_lr = 1e-3
    config.algorithm.critic_ema = 0.05
    config.algorithm.critic_warmup = 256
    config.algorithm.actor_ema = 0.02
    config.algorithm.chains = 8
    config.finetune.utd = 0.125
    config.finetune.env_steps = 49_152
    config.finetune.warmup_steps = 12_288
    config.evaluation.every = 6_144
    return config
