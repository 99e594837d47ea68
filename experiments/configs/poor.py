"""Any task with a demonstrator: clone its poor demonstrations (a third succeed), then OGPO+CA.

    gcp-jax train --config=experiments/configs/poor.py:nut_on_peg --run_dir=runs/nut_on_peg

Cloning is not stopped at a success rate: the demonstrations limit the clone. The chunks of the
Adroit tasks have 112 and 120 numbers, about as many as the default network is wide, and the arm
uses a small part of its command range. Those tasks get a network four times as wide, and actions
rescaled to the range of the demonstrations. docs/results/poor_demos.md has what came out.
"""

import ml_collections

from gcp_jax.experiments.run_config import defaults


def get_config(task: str = "nut_on_peg") -> ml_collections.ConfigDict:
    """The configuration of ``task``."""
    config = defaults(env=task, algorithm="ogpo")
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
