"""Any task with a demonstrator: cloned from its poor demonstrations (about a third succeed), then OGPO+CA.

    gcp-jax train --config=experiments/configs/poor.py:nut_on_peg --config.run_dir=runs/nut_on_peg

What came out, with the budget of each task, is in the README's table. Cloning is not cut at a success rate: a clone is as
good as its demonstrations make it. Adroit's chunks are 112 and 120 numbers, about as many as the default net is wide, and its arm
moves in a small part of what its commands span: a net four times as wide, on the range of the demonstrations, clones them.
"""

import ml_collections

from gcp_jax.experiments.assemble import apply_many_env_preset, defaults


def get_config(task: str = "nut_on_peg") -> ml_collections.ConfigDict:
    """The configuration of ``task``."""
    config = defaults(env=task, algorithm="ogpo")
    apply_many_env_preset(config)
    config.demonstrations.quality = "poor"
    if task.startswith("adroit"):
        config.policy.hidden = (512, 512, 512)
        config.pretrain.rescale_actions = True
    config.pretrain.stop_at_success = 1.0
    config.pretrain.updates = 20_000
    config.pretrain.evaluate_every = 5_000
    config.finetune.env_steps = 55_296
    config.evaluation.every = 18_432
    config.evaluation.episodes = 128
    return config
