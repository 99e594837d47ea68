"""A small configuration on ``reach``, for tests that build a run in their own process."""

from gcp_jax.experiments import run_config

SMALL = {
    "finetune.envs": 4,
    "finetune.unroll_chunks": 2,
    "finetune.batch_size": 16,
    "finetune.utd": 0.1,
    "policy.hidden": (8,),
}


def small_config(algorithm="qc", **fields):
    """The frozen configuration of a method with SMALL and these fields."""
    config = run_config.defaults(env="reach")
    run_config.set_algorithm(config, algorithm)
    run_config.override(config, {**SMALL, **fields})
    return run_config.frozen_config(config)
