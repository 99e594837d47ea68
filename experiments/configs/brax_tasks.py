"""A locomotion task of brax: cloned from its shaken demonstrator, then OGPO+CA, judged by its return.

    gcp-jax train --config=experiments/configs/brax_tasks.py:hopper --config.run_dir=runs/hopper

As ``poor.py``, but that nothing succeeds there, so that OGPO has no success buffer, that a reward in every step wants the authors'
discount, and that episodes are ten times as long.
"""

import ml_collections

from gcp_jax.experiments.configs import poor


def get_config(task: str = "hopper") -> ml_collections.ConfigDict:
    """The configuration of brax's ``task``."""
    config = poor.get_config(f"brax:{task}")
    config.algorithm.gamma = 0.99
    config.algorithm.success_weight = 0.0
    config.demonstrations.episodes = 64
    config.pretrain.updates = 5000
    config.finetune.env_steps = 61_440
    config.evaluation.every = 20_480
    config.evaluation.episodes = 32
    return config
