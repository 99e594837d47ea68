"""Train the demonstrators of brax's locomotion tasks by brax's own PPO and keep their parameters with the project.

    python -m gcp_jax.experiments.brax_demonstrators hopper --steps=2000000

Writes ``envs/assets/brax_hopper.npz``, which ``envs.brax_suite`` acts with, ten times while it trains. It trains with one iteration of
MJX's solver, which is several times faster than the tasks' own four; what the demonstrators reach on the tasks themselves is
measured by ``benchmarks.environments``. A file that exists is only replaced with --replace.
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

from gcp_jax.envs.suites import brax
from gcp_jax.experiments import runtime

ENVS, UNROLL, EVALUATED = (
    256,
    20,
    32,
)  # environments, steps between updates' data, episodes of an evaluation
LARGEST = 1e4  # a position, velocity, observation or reward beyond it has diverged; NaN is beyond everything


def _replicated(x: Any, devices: Sequence[Any]) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), x)


if not hasattr(jax, "device_put_replicated"):  # brax 0.14 calls it; JAX 0.10 has taken it away
    jax.device_put_replicated = _replicated


class Guarded(brax.envs.Wrapper):
    """Ends an episode whose physics diverges where it was last finite; one such number would make all of PPO's statistics NaN."""

    def step(self, state: Any, action: jax.Array) -> Any:
        """One step, or the state before it and ``done``."""
        new = self.env.step(state, action)
        numbers = (new.obs, new.reward, new.pipeline_state.q, new.pipeline_state.qd)
        fine = functools.reduce(jnp.logical_and, [jnp.all(jnp.abs(x) < LARGEST) for x in numbers])
        kept = jax.tree.map(lambda after, before: jnp.where(fine, after, before), new, state)
        return kept.replace(
            done=jnp.where(fine, new.done, 1.0), reward=jnp.where(fine, new.reward, 0.0)
        )


def main() -> None:
    """Train and write one task's demonstrator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", help="a task of brax, e.g. hopper; its noise levels go into envs.brax_suite.QUALITY"
    )
    parser.add_argument("--steps", type=int, default=5_000_000, help="environment steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--iterations",
        type=int,
        default=1,
        help="of MJX's solver while training; 0: the task's own",
    )
    parser.add_argument("--ls_iterations", type=int, default=4, help="the same of its line search")
    parser.add_argument("--reward_scaling", type=float, default=1.0)
    parser.add_argument("--entropy_cost", type=float, default=1e-3)
    parser.add_argument("--discounting", type=float, default=0.99)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument(
        "--replace", action="store_true", help="overwrite the demonstrator that is there"
    )
    chosen = parser.parse_args()
    runtime.prepare_cpu()
    path = brax.parameters_file(chosen.name)
    if path.exists() and not chosen.replace:
        sys.exit(f"{path} exists; --replace overwrites it.")
    path.parent.mkdir(exist_ok=True)
    train(
        chosen,
        lambda steps, policy, found: np.savez(path, allow_pickle=False, **parameters(*found[:2])),
    )
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def train(chosen: argparse.Namespace, keep: Callable[..., None]) -> None:
    """Run PPO; ``keep`` gets (steps, policy, parameters) at every evaluation."""
    config = brax.Config(iterations=chosen.iterations, ls_iterations=chosen.ls_iterations)
    began = time.monotonic()

    def tell(steps: int, metrics: dict[str, Any]) -> None:
        told = f"return {metrics['eval/episode_reward']:.0f} ± {metrics['eval/episode_reward_std']:.0f}"
        print(
            f"{steps} steps, {time.monotonic() - began:.0f} s: {told}", file=sys.stderr, flush=True
        )

    ppo.train(
        environment=Guarded(brax.task(chosen.name, config)),
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
        num_eval_envs=EVALUATED,
        deterministic_eval=True,
        progress_fn=tell,
        policy_params_fn=keep,
    )


def parameters(normalizer: Any, policy: Any) -> dict[str, np.ndarray]:
    """The normalizer and the layers of a policy, as ``envs.brax_suite.act`` takes them."""
    layers = policy["params"]
    found = {"mean": normalizer.mean, "std": normalizer.std}
    for index, name in enumerate(sorted(layers)):
        found |= {f"kernel_{index}": layers[name]["kernel"], f"bias_{index}": layers[name]["bias"]}
    return {name: np.asarray(value, np.float32) for name, value in jax.device_get(found).items()}


if __name__ == "__main__":
    main()
