"""OGPO+CA on ``peg_insert``: the critic's learning rate and the updates per environment step.

Two programs of 3 × 2 trainings.

    gcp-jax sweep experiments/sweeps/learning_rates.py --dry-run
    gcp-jax sweep experiments/sweeps/learning_rates.py
    gcp-jax report runs/sweeps/learning_rates
"""

from gcp_jax.launch import Sweep, grid


def get_sweep() -> Sweep:
    """Learning rates and seeds share a program; updates per step shape it, so they do not."""
    return Sweep(
        config="experiments/configs/peg_insert.py",
        axes=(
            grid("finetune.utd", (0.0625, 0.125)),
            grid("algorithm.critic_lr", (3e-4, 1e-3, 3e-3)),
        ),
        pack=("algorithm.critic_lr",),
        seeds=2,
    )
