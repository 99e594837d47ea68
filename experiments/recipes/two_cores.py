"""Finetuning with one update for every environment step, on a machine with two cores.

    gcp-jax train --config=experiments/recipes/two_cores.py:pick_place --run_dir=runs/first

The tasks' own configurations take an update every eight steps, which is the fastest way from noisy
demonstrations to a policy that succeeds. From a clone of few, clean demonstrations more updates are
worth more than more steps (docs/choosing_a_method.md). Here they are made cheap: narrow networks,
batches of 64, and 32 states × 8 chains. One seed takes 60 to 100 updates a second on one core, so
that 40,000 steps take about ten minutes; several seeds in one program take as long as one after the
other. A method may follow the task: experiments/recipes/two_cores.py:pick_place,expo.
"""

import ml_collections

from gcp_jax.experiments import run_config

CRITIC_HIDDEN = (96, 96)


def get_config(task_and_method: str = "peg_insert,ogpo") -> ml_collections.ConfigDict:
    """The configuration of ``TASK`` or ``TASK,METHOD``; the method is OGPO unless named."""
    task, _, method = task_and_method.partition(",")
    config = run_config.defaults(env=task)
    run_config.set_algorithm(config, method or "ogpo")
    config.finetune.envs = 32
    config.finetune.unroll_chunks = 2
    config.finetune.batch_size = 64
    config.finetune.utd = 1.0
    config.finetune.learning_starts = 4_096
    config.finetune.env_steps = 40_960
    config.evaluation.every = 4_096
    config.evaluation.episodes = 128
    config.checkpoint.every = 8_192
    if "critic_hidden" in config.algorithm:
        config.algorithm.critic_hidden = CRITIC_HIDDEN
    if config.algorithm.name == "ogpo":
        config.algorithm.critic_lr = 3e-4
        config.algorithm.actor_states = 32
        config.algorithm.deploy_best_of = 8
    return config
