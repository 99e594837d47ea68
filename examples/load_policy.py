"""Load a saved policy and play it in its environment.

gcp-jax train --config=experiments/configs/reach.py --run_dir=runs/reach
python examples/load_policy.py runs/reach/policy/seed_0
python examples/load_policy.py reach/ogpo    # one that comes with gcp-jax
"""

from __future__ import annotations

import sys

import jax
import numpy as np

import gcp_jax


def play(path: str, seed: int = 0) -> bool:
    """Play one episode; True if it succeeded."""
    policy = gcp_jax.load_policy(path, seed=seed)
    env = gcp_jax.make_env(**policy.facts["env"])
    reset = jax.jit(env.reset)
    step = jax.jit(env.step)

    policy.reset()
    state = reset(jax.random.key(seed))
    for _ in range(env.specs.horizon):
        action = policy(np.asarray(state.obs))
        state = step(state, action)
        if state.success:
            return True
    return False


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/load_policy.py RUN/policy/seed_0|NAME")
    print("success:", play(sys.argv[1]))
