"""Three hyper-parameters of OGPO+CA on ``peg_insert`` by Optuna's TPE.

24 trials of 2 seeds, 4 trials at a time.

    gcp-jax sweep experiments/sweeps/search.py
"""

from gcp_jax.launch import Search, Sweep, log_uniform, uniform


def get_sweep() -> Sweep:
    """A trial's score is the mean final success of its seeds."""
    return Sweep(
        config="experiments/configs/peg_insert.py",
        fields={"video": False},
        search=Search(
            {
                "algorithm.critic_lr": log_uniform(1e-4, 1e-2),
                "algorithm.actor_lr": log_uniform(3e-5, 1e-3),
                "algorithm.actor_tau": uniform(0.005, 0.05),
            },
            trials=24,
            parallel=4,
        ),
        seeds=2,
    )
