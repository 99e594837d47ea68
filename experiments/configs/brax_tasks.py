"""A locomotion task of brax: clone its noisy demonstrator, then OGPO+CA, scored by return.

    gcp-jax train --config=experiments/configs/brax_tasks.py:hopper --run_dir=runs/hopper

It differs from ``poor.py`` in three points. Nothing succeeds, so OGPO has no success buffer. Every
step has a reward, so the discount is the authors'. Episodes are ten times as long.
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
