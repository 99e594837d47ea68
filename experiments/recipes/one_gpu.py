"""OGPO+CA for an afternoon on one GPU: the authors' ratios at a quarter of their size.

    gcp-jax train --config=experiments/recipes/one_gpu.py:pick_place --config.seeds=4 \
      --run_dir=runs/gpu

``ogpo_paper`` with three layers of 256 instead of four of 512, five critics instead of ten, 128
states × 16 chains instead of 256 × 32, and half a million steps instead of two: some 1/20 of the
work of an update and 1/80 of that of the training. Rates, ratios and averages are the authors', one
update for every environment step included. It was built and planned for every task, but has not run
on a GPU yet; ``python -m benchmarks.gpu`` tells how long an update takes on yours.
"""

import ml_collections

from gcp_jax.experiments.recipes import ogpo_paper

WIDTH = 256


def get_config(task: str = "peg_insert") -> ml_collections.ConfigDict:
    """The configuration of ``task``."""
    config = ogpo_paper.get_config(task)
    config.policy.hidden = (WIDTH,) * 3
    config.algorithm.critic_hidden = (WIDTH,) * 3
    config.algorithm.critics = 5
    config.algorithm.chains = 16
    config.algorithm.actor_states = 128
    config.finetune.batch_size = 128
    config.finetune.envs = 128
    config.finetune.unroll_chunks = 2
    config.finetune.env_steps = 500_000
    config.finetune.capacity = 500_000
    config.evaluation.every = 25_000
    config.checkpoint.every = 25_000
    return config
