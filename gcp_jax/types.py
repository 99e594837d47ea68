"""The records everything else is made of, and the legend of symbols.

    S   seeds (members, where fields vary too)   B   batch of transitions
    N   environments of one seed                 T   capacity of a replay, in chunk rows
    L   chunk steps of one segment               U   gradient updates of one segment
    h   environment steps of one action chunk    K   denoising steps
    O   observation dimensions                   M   critics of the ensemble
    A   action dimensions of one step            G   chains drawn per state (the group)

Records are NamedTuples of arrays (a pytree) or of pure functions; there are no base classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class Specs(NamedTuple):
    """Sizes an algorithm needs to build its networks; plain integers."""

    obs_dim: int
    action_dim: int
    chunk: int

    @property
    def flat_action_dim(self) -> int:
        """h·A, the length of a flattened chunk."""
        return self.chunk * self.action_dim


class Step(NamedTuple):
    """One environment step as it happened; leading axes are free (``[..., h]`` inside a chunk).

    ``executed`` is False for the steps of a chunk that come after the episode's end: the environment is
    frozen there, and everything but ``action`` (which was proposed, not run) is to be ignored.
    """

    obs: Array  # [..., O] float32, before the step
    action: Array  # [..., A] float32 in [-1, 1]
    reward: Array  # [...] float32
    next_obs: Array  # [..., O] float32, the true successor, never the start of the next episode
    terminated: Array  # [...] bool: the task ended; no value follows
    truncated: Array  # [...] bool: the time limit (or diverged physics) ended it; a value follows
    success: Array  # [...] bool: success was reached at this step
    executed: Array  # [...] bool


class Segment(NamedTuple):
    """What one call of the rollout collected: chunk rows, time-major."""

    steps: Step  # leaves [L, N, h, ...]
    extras: PyTree  # leaves [L, N, ...]: what ``act`` wants remembered; {} off-policy


class Transition(NamedTuple):
    """One chunk transition with time folded in, so that every target is ``reward + discount·V(next_obs)``."""

    obs: Array  # [..., O]
    action: Array  # [..., h, A]
    mask: Array  # [..., h] float32: 1 where the chunk's step was executed
    reward: Array  # [...] Σ γ^i r_i over the executed steps
    discount: Array  # [...] γ^executed · (1 − terminated)
    next_obs: Array  # [..., O] true successor of the last executed step
    terminated: Array  # [...] bool
    truncated: Array  # [...] bool
    extras: PyTree = {}  # leaves [..., ...]


class Batch(NamedTuple):
    """One minibatch. ``success`` holds transitions of episodes that succeeded, a view of the same replay;
    ``success_weight`` [B] is 0 where no such transition could be drawn, and 1 in the mean over all devices' batch unless none
    could at all. Both are None where unsupported."""

    transitions: Transition
    success: Transition | None = None
    success_weight: Array | None = None
    return_to_go: Array | None = (
        None  # [B] realised discounted return; NaN while the episode is unfinished
    )


class BatchSource(NamedTuple):
    """Where minibatches come from: the only difference between on- and off-policy learning.

    init:  (item: Segment shapes) -> store
    step:  (store, prepared segment | None, key, clock) -> (store, Batch with leaves [U, B, ...])
    layout: prefix of PartitionSpecs over ("seed", "data") for the store; a part without "seed" is shared by all seeds
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, Batch]]
    layout: PyTree
    updates: int  # U
    batch_size: int  # B over all devices


class Algorithm(NamedTuple):
    """A method, as pure functions of one seed; the caller vmaps over seeds and shards over devices.

    init:    (key, pretrained: PyTree) -> state
    act:     (state, obs [N, O], key) -> (chunk [N, h, A], extras)
    prepare: (state, segment) -> (state, segment)    once a segment; identity off-policy, GAE and returns on-policy
    update:  (state, batch, key) -> (state, metrics)     one minibatch; no logging
    greedy:  (deployed, obs [N, O], key) -> chunk [N, h, A]  what is evaluated and deployed
    export:  (state) -> deployed: {"net", "normalizer"} of the base policy's kind, and whatever else ``greedy`` needs
    value:   (state, obs [B, O], chunk [B, G, h, A]) -> [M, B, G]   what the critics think, for the diagnostics
    """

    init: Callable[..., PyTree]
    act: Callable[..., tuple[Array, PyTree]]
    preprocess_segment: Callable[[PyTree, Segment], tuple[PyTree, Segment]]
    update: Callable[..., tuple[PyTree, dict[str, Array]]]
    eval_policy: Callable[..., Array]
    export: Callable[[PyTree], PyTree]
    source: BatchSource
    value: Callable[[PyTree, Array, Array], Array] | None = None


def identity_preprocess(state: PyTree, segment: Segment) -> tuple[PyTree, Segment]:
    """``prepare`` of a method that takes segments as they come."""
    return state, segment


class Train(NamedTuple):
    """The whole training state, saved and restored as one: 2N steps ≡ N + restart + N, bit for bit."""

    state: PyTree  # of the algorithm, leaves [S, ...]
    base: PyTree  # the policy finetuning started from, shared by all seeds
    env: PyTree  # of the environments, leaves [S, N, ...]; None without a rollout
    store: PyTree  # of the source
    key: Array  # typed keys [S]
    clock: Array  # int32 []: segments done, shared by all seeds
    values: PyTree  # {field: [S]} of a population: what differs between the members; {} where nothing does
