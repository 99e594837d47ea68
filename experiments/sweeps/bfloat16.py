"""OGPO+CA on ``reach`` computed in float32 and in bfloat16, each from its own clone, 4 seeds each.

gcp-jax sweep experiments/sweeps/bfloat16.py
gcp-jax report runs/sweeps/bfloat16
"""

from gcp_jax.launch import Sweep, grid


def get_sweep() -> Sweep:
    """Parameters, sums and losses stay in float32 in both."""
    return Sweep(
        config="experiments/configs/reach.py",
        axes=(grid("policy.compute", ("float32", "bfloat16")),),
        seeds=4,
    )
