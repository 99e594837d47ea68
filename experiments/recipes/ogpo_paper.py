"""OGPO+CA with its authors' sizes and rates (arXiv 2605.03065), on any task with a demonstrator.

    gcp-jax train --config=experiments/recipes/ogpo_paper.py:pick_place --run_dir=runs/paper

256 states × 32 chains, K = 10, four layers of 512, ten critics, and one update for every
environment step: an update takes about 6 s on two CPU cores, so that the two million of the paper
need an accelerator. ``FAMILIES`` has what the paper sets for each kind of task; tasks of ours get
the settings of the kind that they resemble. The paper's replay starts empty, its clone is one that
succeeds in 45 to 50 % of its episodes, and its reward is that of our tasks: -1 a step, +5 at
success.
"""

from typing import Any

import ml_collections

from gcp_jax.experiments.run_config import defaults

WIDTH = 512
FAMILIES: dict[str, dict[str, Any]] = {
    "square": {},
    "tool_hang": {
        "policy.chunk": 8,
        "policy.hidden": (WIDTH,) * 5,
        "algorithm.critic_hidden": (WIDTH,) * 5,
        "algorithm.gamma": 0.999,
        "finetune.learning_starts": 40_000,
    },
    "adroit": {
        "policy.steps": 3,
        "pretrain.rescale_actions": True,
        "algorithm.gamma": 0.95,
        "algorithm.actor_tau": 0.05,
        "finetune.env_steps": 500_000,
    },
    "push_t": {"algorithm.gamma": 0.95},
}
FAMILY_OF = {
    "handover": "tool_hang",
    "nut_on_peg": "tool_hang",
    "adroit_door": "adroit",
    "adroit_relocate": "adroit",
    "hand_cube": "adroit",
    "push_t": "push_t",
}


def get_config(task: str = "peg_insert") -> ml_collections.ConfigDict:
    """The configuration of ``task``."""
    config = defaults(env=task, algorithm="ogpo")
    config.policy.chunk = 4
    config.policy.hidden = (WIDTH,) * 4
    config.policy.steps = 10
    config.policy.sigma = 0.05
    config.pretrain.stop_at_success = 0.45
    config.pretrain.learning_rate = 3e-4
    config.algorithm.gamma = 0.99
    config.algorithm.chains = 32
    config.algorithm.actor_states = 256
    config.algorithm.actor_lr = 4.5e-5
    config.algorithm.lr_cycle = 50_000
    config.algorithm.actor_tau = 0.005
    config.algorithm.critics = 10
    config.algorithm.critic_hidden = (WIDTH,) * 4
    config.algorithm.critic_lr = 3e-4
    config.algorithm.critic_tau = 0.05
    config.algorithm.grad_clip = 1000.0
    config.finetune.batch_size = 256
    config.finetune.utd = 1.0
    config.finetune.learning_starts = 10_000
    config.finetune.env_steps = 2_000_000
    config.finetune.capacity = 2_000_000
    config.evaluation.every = 50_000
    config.checkpoint.every = 50_000
    for field, value in FAMILIES[FAMILY_OF.get(task, "square")].items():
        section, name = field.split(".")
        config[section][name] = value
    return config
