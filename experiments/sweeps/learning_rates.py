"""The critic's learning rate and the updates per environment step of OGPO+CA on ``peg_insert``: 2 programs of 3 × 2 trainings.

The commands:

    gcp-jax sweep experiments/sweeps/learning_rates.py --dry-run
    gcp-jax sweep experiments/sweeps/learning_rates.py
    gcp-jax report runs/sweeps/learning_rates
"""

from gcp_jax.launch import Sweep, grid


def get_sweep() -> Sweep:
    """The learning rates share a program, as do the seeds; the updates per step, which shape it, do not."""
    return Sweep(
        config="experiments/configs/peg_insert.py",
        axes=(
            grid("finetune.utd", (0.0625, 0.125)),
            grid("algorithm.critic_lr", (3e-4, 1e-3, 3e-3)),
        ),
        pack=("algorithm.critic_lr",),
        seeds=2,
    )
