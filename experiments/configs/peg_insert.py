"""Insert a square peg with 1 mm total clearance: clone to 30–50 % success, then OGPO+CA to above 97 %.

    gcp-jax train --config=experiments/configs/peg_insert.py --config.seeds=3 --config.run_dir=runs/peg_insert

Beside the authors' constants (see ``algorithms/ogpo.py``): episodes of 72 steps want γ .97; 64 environments at once give few
updates per step, so averages move faster (actor .02, critic .05) and the critic gets 256 updates before it is obeyed.
"""

import ml_collections

from experiments.tasks import defaults


def get_config() -> ml_collections.ConfigDict:
    """The task's configuration."""
    config = defaults(env="peg_insert", algorithm="ogpo")
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
    config.finetune.env_steps = 36_864
    config.finetune.warmup_steps = 12_288
    config.evaluation.every = 6_144
    return config
