"""Sizes of a run and the cadence of its stages: all that follows from a configuration by counting.

A stage is counted in segments. Its *clock*, the number of segments done, determines every other
counter, so that a resumed run needs no counters beside it.
"""

from __future__ import annotations

import math
import signal
from types import ModuleType
from typing import Any, NamedTuple

from gcp_jax import algorithms
from gcp_jax import mesh as mesh_lib
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.config_fields import check_magnitude
from gcp_jax.run.errors import Interrupted, Paused, RunError
from gcp_jax.types import Specs


class RunSizes(NamedTuple):
    """Sizes of finetuning, for one seed."""

    specs: Specs
    unroll_chunks: int  # L: chunks that each environment runs in a segment
    env_steps: int  # of a segment
    updates: int  # U: of a segment
    segments: int  # of the whole of finetuning
    warmup_segments: int  # before the first update
    capacity: int  # T: chunk rows of the replay
    evaluate_every: int  # segments
    checkpoint_every: int  # segments


def run_sizes(config: RunConfig, env_specs: Any) -> RunSizes:
    """Derive the sizes of finetuning.

    Args:
      config: the run.
      env_specs: the specs of its environment.

    Raises:
      ConfigError: sizes contradict each other.
      ValueError: a size cannot be divided over the devices of ``data_parallel``.
    """
    finetune = config.finetune
    chunk = config.policy.chunk
    method = algorithms.load(config.algorithm.name, config.algorithm.module)
    on_policy = algorithms.on_policy(method)
    if chunk > env_specs.horizon:
        raise ConfigError(
            f"policy.chunk is {chunk}, longer than an episode of {env_specs.name} "
            f"({env_specs.horizon} steps)."
        )
    _check_divisible(config, on_policy=on_policy)
    if not on_policy:
        _check_replay(config)
    env_steps = finetune.envs * finetune.unroll_chunks * chunk
    check_magnitude(env_steps, "finetune.envs · finetune.unroll_chunks · policy.chunk")
    segments = math.ceil(finetune.env_steps / env_steps)
    warmup_segments = 0 if on_policy else math.ceil(finetune.learning_starts / env_steps)
    if warmup_segments >= segments:
        warmup_steps = warmup_segments * env_steps
        raise ConfigError(
            f"finetune.learning_starts is {finetune.learning_starts}, {warmup_steps} in whole "
            f"segments of {env_steps} env steps, and finetune.env_steps is {finetune.env_steps}: "
            f"nothing would be learned; raise finetune.env_steps above {warmup_steps}, or lower "
            "finetune.learning_starts."
        )
    sizes = RunSizes(
        specs=Specs(env_specs.obs_dim, env_specs.action_dim, chunk),
        unroll_chunks=finetune.unroll_chunks,
        env_steps=env_steps,
        updates=_updates_of_segment(config, method, env_steps),
        segments=segments,
        warmup_segments=warmup_segments,
        capacity=_replay_capacity(config),
        evaluate_every=max(round(config.evaluation.every / env_steps), 1),
        checkpoint_every=max(round(config.checkpoint.every / env_steps), 1),
    )
    _check_totals(config, sizes)
    return sizes


def _check_divisible(config: RunConfig, *, on_policy: bool) -> None:
    finetune = config.finetune
    split_sizes = {
        "finetune.envs": finetune.envs,
        "finetune.reset_pool (or a quarter of finetune.envs)": finetune.reset_pool_size,
        "pretrain.batch_size": config.pretrain.batch_size,
        "evaluation.episodes": config.evaluation.episodes,
    }
    if not on_policy:
        split_sizes["finetune.batch_size"] = finetune.batch_size
    for name, size in split_sizes.items():
        mesh_lib.require_divisible(name, size, config.data_parallel)


def _check_totals(config: RunConfig, sizes: RunSizes) -> None:
    """Check what the sizes of a run multiply to: devices count with 32 bits.

    Raises:
      ConfigError: for a product above ``MAX_COUNT``.
    """
    envs = config.finetune.envs
    chunk = config.policy.chunk
    totals = {
        "finetune.utd · the env steps of a segment": sizes.updates,
        "the number of updates of the run": sizes.segments * sizes.updates,
        "finetune.capacity in whole segments": sizes.capacity * envs * chunk,
        "pretrain.evaluate_every · pretrain.batch_size": (
            config.pretrain.evaluate_every * config.pretrain.batch_size
        ),
    }
    for name, total in totals.items():
        check_magnitude(total, name)


def _check_replay(config: RunConfig) -> None:
    finetune = config.finetune
    if finetune.batch_size > finetune.capacity:
        raise ConfigError(
            f"finetune.batch_size is {finetune.batch_size}, more than the replay holds "
            f"(finetune.capacity={finetune.capacity} env steps)."
        )


def _updates_of_segment(config: RunConfig, method: ModuleType, env_steps: int) -> int:
    if algorithms.on_policy(method):
        needs = method.rollout_needs(config.algorithm.settings)
        updates: int = needs["epochs"] * needs["minibatches"]
        return updates
    return max(round(config.finetune.utd * env_steps), 1)


def _replay_capacity(config: RunConfig) -> int:
    """Chunk rows of the replay: a multiple of the rows of a segment, of two segments at least."""
    finetune = config.finetune
    segment_steps = finetune.envs * config.policy.chunk * finetune.unroll_chunks
    return max(finetune.capacity // segment_steps, 2) * finetune.unroll_chunks


class Decision(NamedTuple):
    """What to do after a segment and its evaluation."""

    save: bool
    stop: RunError | None  # raised after saving


class Cadence(NamedTuple):
    """When a stage evaluates, saves and ends, in segments."""

    name: str
    segments: int
    env_steps: int  # of a segment of one seed; 0 in pretraining
    updates: int  # of a segment
    warmup_segments: int  # without updates
    evaluate_every: int
    checkpoint_every: int

    @property
    def unit(self) -> str:
        """What progress is counted in."""
        return "env steps" if self.env_steps else "updates"

    def counters(self, clock: int) -> dict[str, int]:
        """Environment steps of one seed and updates after ``clock`` segments."""
        learning_segments = max(clock - self.warmup_segments, 0)
        return {
            "env_steps": clock * self.env_steps,
            "updates": learning_segments * self.updates,
        }

    def progress(self, clock: int) -> int:
        """Progress in ``unit``."""
        return self.counters(clock)[self.unit.replace(" ", "_")]

    def evaluates(self, clock: int) -> bool:
        """True if the policy is evaluated after segment ``clock``."""
        return clock == self.segments or clock % self.evaluate_every == 0

    def pauses(self, clock: int, pause_at: int) -> bool:
        """True at the first evaluation with at least ``pause_at`` environment steps (0: never)."""
        if not (pause_at and self.env_steps) or clock == self.segments:
            return False
        if not self.evaluates(clock):
            return False
        previous = clock - self.evaluate_every
        return previous * self.env_steps < pause_at <= clock * self.env_steps

    def decide(self, clock: int, *, signum: int, pause_at: int, goal_reached: bool) -> Decision:
        """Decide whether to save and whether to stop after segment ``clock``.

        Args:
          clock: segments done.
          signum: the signal that asked the run to stop; 0 if there was none.
          pause_at: environment steps after which the next evaluation pauses the run; 0: never.
          goal_reached: the last evaluation ends the stage.
        """
        stop: RunError | None = None
        if self.pauses(clock, pause_at):
            stop = Paused(f"paused at {self.progress(clock)} {self.unit}.")
        elif signum:
            stop = self.interruption(clock, signum)
        due = clock == self.segments or clock % self.checkpoint_every == 0
        return Decision(save=due or goal_reached or stop is not None, stop=stop)

    def interruption(self, clock: int, signum: int) -> Interrupted:
        """The error that ends a run which is saved after segment ``clock``, because of a signal."""
        return Interrupted(
            f"stopped by {signal.Signals(signum).name}; saved at {self.progress(clock)} "
            f"{self.unit} of {self.name}. The same command continues from there.",
            signum,
        )


class Cadences(NamedTuple):
    """The cadence of each stage."""

    pretrain: Cadence
    finetune: Cadence


def stage_cadences(config: RunConfig, sizes: RunSizes) -> Cadences:
    """The cadences of a run's two stages.

    Cloning takes at most ``pretrain.updates``, in segments of ``pretrain.evaluate_every``.
    """
    pretrain = config.pretrain
    segment_updates = min(pretrain.evaluate_every, pretrain.updates)
    return Cadences(
        pretrain=Cadence(
            name="pretrain",
            segments=pretrain.updates // segment_updates,
            env_steps=0,
            updates=segment_updates,
            warmup_segments=0,
            evaluate_every=1,
            checkpoint_every=max(round(config.checkpoint.every / segment_updates), 1),
        ),
        finetune=Cadence(
            name="finetune",
            segments=sizes.segments,
            env_steps=sizes.env_steps,
            updates=sizes.updates,
            warmup_segments=sizes.warmup_segments,
            evaluate_every=sizes.evaluate_every,
            checkpoint_every=sizes.checkpoint_every,
        ),
    )
