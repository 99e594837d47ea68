"""Train demonstrators of brax's locomotion tasks with brax's PPO and keep their parameters.

    python -m gcp_jax.experiments.brax_demonstrators hopper --steps=2000000

Writes ``envs/assets/brax_hopper.npz``, which ``gcp_jax.envs.suites.brax`` acts with, ten times
while it trains. Training uses one iteration of MJX's solver, several times faster than the four of
the tasks themselves, on which ``benchmarks.environments`` measures the demonstrators. An existing
file is replaced only with --replace.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import brax.envs
import jax
import jax.numpy as jnp
import numpy as np
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo

from gcp_jax.envs.suites import brax as brax_suite
from gcp_jax.experiments import runtime

ENVS = 256
UNROLL = 20  # environment steps between updates
EVAL_EPISODES = 32
LARGEST = 1e4  # a position, velocity, observation or reward beyond it, or NaN, has diverged


def _replicated(x: Any, devices: Sequence[Any]) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), x)


if not hasattr(jax, "device_put_replicated"):  # brax 0.14 calls it; JAX 0.10 removed it
    jax.device_put_replicated = _replicated


class Guarded(brax.envs.Wrapper):
    """Ends an episode whose physics diverges, in its last finite state.

    A single NaN would make all of PPO's statistics NaN.
    """

    def step(self, state: Any, action: jax.Array) -> Any:
        """One step; the state before it with ``done`` if the step diverges."""
        new = self.env.step(state, action)
        numbers = (new.obs, new.reward, new.pipeline_state.q, new.pipeline_state.qd)
        finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.abs(x) < LARGEST) for x in numbers])
        kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        return kept.replace(
            done=jnp.where(finite, new.done, 1.0), reward=jnp.where(finite, new.reward, 0.0)
        )


def main() -> None:
    """Train and write one task's demonstrator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name",
        help="a task of brax, e.g. hopper; its noise levels go into envs.suites.brax.QUALITY",
    )
    parser.add_argument("--steps", type=int, default=5_000_000, help="environment steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--iterations",
        type=int,
        default=1,
        help="iterations of MJX's solver while training; 0: the task's own",
    )
    parser.add_argument(
        "--ls_iterations", type=int, default=4, help="iterations of its line search"
    )
    parser.add_argument("--reward_scaling", type=float, default=1.0)
    parser.add_argument("--entropy_cost", type=float, default=1e-3)
    parser.add_argument("--discounting", type=float, default=0.99)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument(
        "--replace", action="store_true", help="overwrite the demonstrator that is there"
    )
    chosen = parser.parse_args()
    runtime.prepare_cpu()
    path = brax_suite.parameters_file(chosen.name)
    if path.exists() and not chosen.replace:
        sys.exit(f"{path} exists; --replace overwrites it.")
    path.parent.mkdir(exist_ok=True)
    train(
        chosen,
        lambda steps, policy, params: np.savez(path, allow_pickle=False, **parameters(*params[:2])),
    )
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def train(chosen: argparse.Namespace, keep: Callable[..., None]) -> None:
    """Run PPO; ``keep`` is called with (steps, policy, parameters) at every evaluation."""
    config = brax_suite.Config(iterations=chosen.iterations, ls_iterations=chosen.ls_iterations)
    start = time.monotonic()

    def print_progress(steps: int, metrics: dict[str, Any]) -> None:
        mean = metrics["eval/episode_reward"]
        std = metrics["eval/episode_reward_std"]
        seconds = time.monotonic() - start
        text = f"{steps} steps, {seconds:.0f} s: return {mean:.0f} ± {std:.0f}"
        print(text, file=sys.stderr, flush=True)

    ppo.train(
        environment=Guarded(brax_suite.brax_env(chosen.name, config)),
        wrap_env_fn=brax.envs.training.wrap,
        num_timesteps=chosen.steps,
        episode_length=config.horizon,
        num_envs=ENVS,
        unroll_length=UNROLL,
        batch_size=ENVS // 2,
        num_minibatches=8,
        num_updates_per_batch=8,
        normalize_observations=True,
        reward_scaling=chosen.reward_scaling,
        entropy_cost=chosen.entropy_cost,
        discounting=chosen.discounting,
        learning_rate=chosen.learning_rate,
        network_factory=functools.partial(
            ppo_networks.make_ppo_networks,
            policy_hidden_layer_sizes=(64,) * 3,
            value_hidden_layer_sizes=(128,) * 3,
        ),
        seed=chosen.seed,
        num_evals=11,
        num_eval_envs=EVAL_EPISODES,
        deterministic_eval=True,
        progress_fn=print_progress,
        policy_params_fn=keep,
    )


def parameters(normalizer: Any, policy: Any) -> dict[str, np.ndarray]:
    """The normalizer and the layers of a policy, as ``envs.suites.brax.act`` takes them."""
    layers = policy["params"]
    found = {"mean": normalizer.mean, "std": normalizer.std}
    for index, name in enumerate(sorted(layers)):
        found |= {f"kernel_{index}": layers[name]["kernel"], f"bias_{index}": layers[name]["bias"]}
    return {name: np.asarray(value, np.float32) for name, value in jax.device_get(found).items()}


if __name__ == "__main__":
    main()
