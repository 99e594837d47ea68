"""The Python API: what ``import gcp_jax`` offers besides the records of the library.

Functions of the command line, for scripts and notebooks. They are thin: what a run does is in
``gcp_jax.run``, how its parts are built in ``gcp_jax.experiments.assemble``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.config_fields import check_count
from gcp_jax.envs.protocol import Env
from gcp_jax.experiments import assemble, play, run_config, run_inputs, runtime
from gcp_jax.report import run_page
from gcp_jax.run import packaged_policies
from gcp_jax.run.adopted_policy import adopt_policy
from gcp_jax.run.folder import config_hash
from gcp_jax.run.saved_policy import SavedPolicy, load_saved_policy
from gcp_jax.run.training import Training
from gcp_jax.types import Specs

Actions = NDArray[np.float32]


class LoadedPolicy:
    """A saved policy as a function of numpy observations.

    The policy samples chunks of ``chunk`` actions. A call returns the next action of each
    environment's chunk, and samples a new chunk from the current observation when the last one is
    used up. Each environment has its own chunk and its own stream of random numbers, so that it
    acts the same alone as among others.

    Attributes:
      specs: sizes of the policy.
      facts: the content of ``policy.json``: task, method, score.
    """

    def __init__(self, saved: SavedPolicy, seed: int = 0) -> None:
        self.specs: Specs = saved.policy.specs
        self.facts: dict[str, Any] = saved.facts
        self._chunks: Actions | None = None  # [N, h, A]; None: before the first call
        self._next = np.zeros(0, int)  # [N] index of the next action of the chunk
        self._counts = np.zeros(0, np.int32)  # [N] chunks that each environment has sampled
        self._key = jax.random.key(seed)

        def sample_chunk(
            key: jax.Array, obs: jax.Array, env: jax.Array, count: jax.Array
        ) -> jax.Array:
            chunk_key = jax.random.fold_in(jax.random.fold_in(key, env), count)
            return saved.eval_policy(saved.deployed, obs[None], chunk_key)[0]

        self._sample_chunks = jax.jit(jax.vmap(sample_chunk, in_axes=(None, 0, 0, 0)))
        self._saved = saved

    def sample_chunks(self, obs: ArrayLike, key: jax.Array) -> jax.Array:
        """Sample whole chunks, as a pure function that can be jitted, vmapped and scanned.

        Args:
          obs: raw observations [N, O].
          key: a random key; consumed.

        Returns:
          Chunks [N, h, A] of actions in [-1, 1].
        """
        chunks: jax.Array = self._saved.eval_policy(self._saved.deployed, jnp.asarray(obs), key)
        return chunks

    @property
    def obs_dim(self) -> int:
        """O, the length of an observation."""
        return self.specs.obs_dim

    @property
    def action_dim(self) -> int:
        """A, the length of an action."""
        return self.specs.action_dim

    @property
    def chunk(self) -> int:
        """h, actions that are sampled together."""
        return self.specs.chunk

    @runtime.fixed_numerics()
    def __call__(self, obs: ArrayLike) -> Actions:
        """Return the next action.

        Args:
          obs: one observation [O], or one for each environment [N, O].

        Returns:
          An action [A] in [-1, 1], or one for each environment [N, A].

        Raises:
          TypeError: if the observations are not numbers.
          ValueError: if their shape is not [O] or [N, O], or N has changed since the last reset.
        """
        observations = self._check(obs)
        rows = np.atleast_2d(observations)
        if self._chunks is None:
            self._start(len(rows))
        elif len(rows) != len(self._next):
            raise ValueError(
                f"{len(rows)} observations, but the policy acts in {len(self._next)} environments "
                "since its last reset; call reset() before changing their number."
            )
        self._replace_used_chunks(rows)
        assert self._chunks is not None
        actions = self._chunks[np.arange(len(rows)), self._next]
        self._next += 1
        return actions[0] if observations.ndim == 1 else actions

    @runtime.fixed_numerics()
    def reset(self, where: ArrayLike | None = None, *, seed: int | None = None) -> None:
        """Forget the rest of the current chunks; call it when an episode starts.

        The streams of random numbers continue, so that two episodes differ, unless a ``seed`` is
        given.

        Args:
          where: a bool for each environment [N], the ones to reset; None: all, whose number may
            then change.
          seed: start the streams of all environments again, from this seed.

        Raises:
          ValueError: if ``where`` is not a bool for each environment.
        """
        if seed is not None:
            check_count("seed", seed, low=0)
            self._key = jax.random.key(seed)
            self._counts = np.zeros(0, np.int32)
        if where is None or seed is not None:
            self._chunks = None
            return
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != self._next.shape:
            raise ValueError(
                f"reset(where) has shape {mask.shape} and dtype {mask.dtype}; "
                f"one bool for each of the {len(self._next)} environments is expected."
            )
        self._next[mask] = self.chunk

    def _check(self, obs: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(obs)
        if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
            raise TypeError(f"the observations have dtype {array.dtype}; numbers are expected.")
        if array.ndim not in (1, 2) or array.shape[-1] != self.obs_dim or not array.size:
            raise ValueError(
                f"the observations have shape {array.shape}; "
                f"[{self.obs_dim}] or [N, {self.obs_dim}] is expected."
            )
        return array.astype(np.float32)

    def _start(self, count: int) -> None:
        """Begin with no chunk in ``count`` environments."""
        self._chunks = np.zeros((count, self.chunk, self.action_dim), np.float32)
        self._next = np.full(count, self.chunk)
        new = np.zeros(max(count - len(self._counts), 0), np.int32)
        self._counts = np.concatenate([self._counts[:count], new])

    def _replace_used_chunks(self, obs: NDArray[np.float32]) -> None:
        """Sample chunks for the environments that have used theirs up."""
        assert self._chunks is not None
        used = self._next == self.chunk
        if not used.any():
            return
        envs = np.arange(len(obs), dtype=np.int32)
        sampled = np.asarray(self._sample_chunks(self._key, obs, envs, self._counts))
        self._chunks[used] = sampled[used]
        self._next[used] = 0
        self._counts[used] += 1


@runtime.fixed_numerics()
def load_policy(path: str | os.PathLike[str], *, seed: int = 0) -> LoadedPolicy:
    """Load a saved policy as a function of numpy observations.

    Args:
      path: a folder such as ``RUN/policy/seed_0``, or if there is nothing at that path the name of
        a packaged policy, such as ``peg_insert/ogpo``.
      seed: of the policy's random numbers; the same seed and observations give the same actions.

    Raises:
      SavedPolicyError: in one line, if there is no policy, or it is damaged or of another format.
    """
    check_count("seed", seed, low=0)
    loaded = LoadedPolicy(load_saved_policy(path), seed)
    packaged_policies.announce(path)
    return loaded


def make_config(
    config: str | os.PathLike[str] | ml_collections.ConfigDict | RunConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Build the configuration of a run.

    Args:
      config: a configuration file, what its ``get_config()`` returns, or a finished record; None:
        the defaults, with the task of ``overrides``.
      overrides: values by dotted name, such as ``{"env.name": "reach", "finetune.utd": 0.5}``. A
        task or a method replaces its section by its own defaults before the others are set.

    Raises:
      ConfigError: in one line, for an unknown field or a value that is not allowed.
    """
    fields = dict(overrides or {})
    if config is None:
        editable = run_config.defaults()
    elif isinstance(config, RunConfig):
        editable = run_config.editable(config)
    elif isinstance(config, ml_collections.ConfigDict):
        editable = ml_collections.ConfigDict(config)
        run_config.complete(editable, "config")
    else:
        editable = run_config.read_config_file(os.fspath(config), named=f"config={config}")
    run_config.select(editable, run_config.Selection.of(fields))
    settings = {name: x for name, x in fields.items() if name not in run_config.SELECTORS}
    run_config.override(editable, settings)
    return run_config.frozen_config(editable)


@runtime.fixed_numerics()
def train(
    config: str | os.PathLike[str] | ml_collections.ConfigDict | RunConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    run_dir: str | os.PathLike[str] = "",
) -> dict[str, Any]:
    """Clone, finetune and evaluate as ``gcp-jax train`` does, and write the report.

    A folder that holds this run unfinished is resumed; a finished run is not repeated.

    Args:
      config: see ``make_config``.
      overrides: see ``make_config``.
      run_dir: the run folder; "": that of the configuration, or one by its hash in ``runs/``.

    Returns:
      The summary, which is also ``summary.json``, with the run folder as "run_dir".

    Raises:
      ConfigError: in one line, for an unknown field or a value that is not allowed.
      RunError: if the folder holds another run, or the run cannot continue.
      SavedPolicyError: in one line, if ``pretrain.saved_policy`` cannot be used.
    """
    run = make_config(config, overrides)
    if run_dir:
        run = dataclasses.replace(run, run_dir=os.fspath(run_dir))
    _prepare_process(run.data_parallel)
    name = f"{run.env.name}-{run.algorithm.name}"
    folder = Path(run.run_dir or Path("runs") / name / config_hash(run))
    run = adopt_policy(run, frozenset(overrides or {}), folder)
    training = Training(run, run_inputs.task_of_run(run, folder), folder, "gcp_jax.train")
    summary = training.run()
    print(f"report: {run_page.write(folder)}", file=sys.stderr)
    return {**summary, "run_dir": str(folder)}


@runtime.fixed_numerics()
def evaluate(
    policy: str | os.PathLike[str], *, episodes: int = 256, seed: int = 0
) -> dict[str, Any]:
    """Evaluate a saved policy on its own task, from fixed start states.

    Args:
      policy: a folder or a name, as for ``load_policy``.
      episodes: start states.
      seed: of the start states.

    Returns:
      {"success" or "return": estimate, "low", "high" (95 %), "episodes", "recorded" (when it was
      saved), "return", "length" (mean steps of an episode)}.

    Raises:
      SavedPolicyError: in one line, if the policy cannot be used.
    """
    _prepare_process()
    check_count("episodes", episodes, low=1)
    check_count("seed", seed, low=0)
    played = play.play(Path(policy), episodes=episodes, seed=seed)
    return play.summarize(played, play.score_of(played, seed))


def make_env(name: str, **settings: Any) -> Env:
    """Make a task, not vectorized.

    Args:
      name: the task's name, or SUITE:NAME, as ``gcp-jax envs`` lists them.
      **settings: fields of the task's Config; ``module`` names a module with a task of your own.

    Returns:
      The task: ``reset(key) -> state``, ``step(state, action [A]) -> state`` and ``specs``. Both
      functions are pure; wrap them in ``jax.jit``.

    Raises:
      ConfigError: in one line, for an unknown task or setting, and if JAX is set to 64 bits.
    """
    changed = runtime.changed_numerics()
    if changed:
        listed = ", ".join(f"{name}={value}" for name, value in changed.items())
        raise ConfigError(
            f"a task computes with JAX's defaults, but here is {listed}; call make_env and the "
            "functions of the task within gcp_jax.experiments.runtime.fixed_numerics()."
        )
    return assemble.build_env(run_config.build_env_choice({"name": name, **settings}))


def _prepare_process(devices: int = 1) -> None:
    """Set XLA's options, and keep compiled programs unless the user has set a folder for them.

    Raises:
      RuntimeError: in one line, if JAX has no device.
    """
    runtime.prepare_cpu(devices)
    if reason := runtime.missing_devices():
        raise RuntimeError(reason)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        runtime.compilation_cache()
