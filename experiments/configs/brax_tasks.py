"""A locomotion task of brax: cloned from its shaken demonstrator, then OGPO+CA, judged by its return.

    gcp-jax train --config=experiments/configs/brax_tasks.py:hopper --config.run_dir=runs/hopper

Nothing succeeds there, so OGPO has no success buffer; a reward in every step wants the authors' discount.
"""

import ml_collections

from experiments.tasks import defaults, vectorised


def get_config(task: str = "hopper") -> ml_collections.ConfigDict:
    """The configuration of brax's ``task``."""
    config = defaults(env=f"brax:{task}", algorithm="ogpo")
    vectorised(config)
    config.algorithm.gamma = 0.99
    config.algorithm.success_weight = 0.0
    config.demonstrations.quality = "poor"
    config.demonstrations.episodes = 64
    config.pretrain.stop_at = 1.0
    config.pretrain.updates = 5000
    config.pretrain.evaluate_every = 5000
    config.finetune.env_steps = 61_440
    config.evaluation.every = 20_480
    config.evaluation.episodes = 32
    return config
