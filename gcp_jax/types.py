"""The records that the whole library shares, and the legend of symbols.

    S   seeds (members of a population too)      B   batch of transitions
    N   environments of one seed                 T   capacity of a replay, in chunk rows
    L   chunk rows of one segment                U   gradient updates of one segment
    h   environment steps of one action chunk    K   denoising steps
    O   observation dimensions                   M   critics of the ensemble
    A   action dimensions of one step            G   chains sampled per state (the group)
    D   = h·A, a flattened chunk

Records are NamedTuples of arrays (pytrees) or of pure functions; there are no base classes. A
function that has a ``key`` argument consumes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array  # typed, as jax.random.key makes them
PyTree = Any
Params = PyTree  # parameters of a network, as flax nests them
OptState = PyTree  # an optimizer's state
Metrics = dict[str, Array]
Deployed = dict[str, PyTree]  # a policy as it acts: "net", "normalizer", and more for some methods


class Specs(NamedTuple):
    """Sizes from which an algorithm builds its networks."""

    obs_dim: int  # O
    action_dim: int  # A
    chunk: int  # h

    @property
    def flat_action_dim(self) -> int:
        """D = h·A, the length of a flattened chunk."""
        return self.chunk * self.action_dim


class Step(NamedTuple):
    """One environment step; a chunk's steps have leaves [..., h, ...].

    ``executed`` is False for the steps of a chunk after the end of the episode. The environment
    does not change there, and everything but ``action`` (which was proposed) is to be ignored.
    """

    obs: Array  # [..., O] float32, before the step
    action: Array  # [..., A] float32 in [-1, 1]
    reward: Array  # [...] float32
    next_obs: Array  # [..., O] float32, the true successor, never the start of the next episode
    terminated: Array  # [...] bool: the task ended; no value follows
    truncated: Array  # [...] bool: time limit or diverged physics; a value follows
    success: Array  # [...] bool: success was reached at this step
    executed: Array  # [...] bool


class Segment(NamedTuple):
    """The chunk rows that one call of the rollout collected, time-major."""

    steps: Step  # leaves [L, N, h, ...]
    extras: PyTree  # leaves [L, N, ...]: what ``Algorithm.act`` wants stored with the chunk


class Transition(NamedTuple):
    """One chunk transition: every target is ``reward + discount · V(next_obs)``."""

    obs: Array  # [..., O]
    action: Array  # [..., h, A]
    mask: Array  # [..., h] float32: 1 if the chunk's step was executed
    reward: Array  # [...] Σ γ^i r_i over the executed steps
    discount: Array  # [...] γ^executed · (1 − terminated)
    next_obs: Array  # [..., O] true successor of the last executed step
    terminated: Array  # [...] bool
    truncated: Array  # [...] bool
    extras: PyTree = {}  # leaves [..., ...], of the chunk


class Batch(NamedTuple):
    """One minibatch; the fields after ``transitions`` are None unless the source provides them."""

    transitions: Transition  # leaves [B, ...]
    success: Transition | None = None  # of episodes that succeeded, from the same replay
    success_weight: Array | None = None  # [B]: 0 if no such transition could be drawn; mean 1
    return_to_go: Array | None = None  # [B] discounted return; NaN if the episode is unfinished


class BatchSource(NamedTuple):
    """Where minibatches come from: the only difference between on- and off-policy learning."""

    # (a segment of one row, for its shapes) -> buffer_state
    init: Callable[..., PyTree]
    # (buffer_state, data, preprocessed segment | None, key, clock)
    #   -> (buffer_state, Batch [U, B, ...])
    step: Callable[..., tuple[PyTree, Batch]]
    # PartitionSpecs, a prefix of buffer_state; parts without the axis "seed" are shared by seeds
    partition_spec: PyTree
    updates: int  # U
    batch_size: int  # B over all devices
    # what ``step`` reads and never changes, on the host: shared by seeds, not saved in checkpoints
    data: PyTree = None


class Algorithm(NamedTuple):
    """A method, as pure functions of one seed; the loop vmaps and shards them."""

    # (key, pretrained policy) -> state
    init: Callable[..., PyTree]
    # (state, obs [N, O], key) -> (chunk [N, h, A], extras to be stored, leaves [N, ...])
    act: Callable[..., tuple[Array, PyTree]]
    # (state, segment) -> (state, segment), once per segment; on-policy methods compute GAE here
    preprocess_segment: Callable[[PyTree, Segment], tuple[PyTree, Segment]]
    # (state, batch, key) -> (state, metrics), one minibatch
    update: Callable[..., tuple[PyTree, Metrics]]
    # (deployed, obs [N, O], key) -> chunk [N, h, A], the policy that is evaluated and deployed
    eval_policy: Callable[..., Array]
    # (state) -> deployed
    export: Callable[[PyTree], Deployed]
    source: BatchSource
    # (state, obs [B, O], chunk [B, G, h, A]) -> the critics' values [M, B, G], for diagnostics
    q_values: Callable[[PyTree, Array, Array], Array] | None = None


def identity_preprocess(state: PyTree, segment: Segment) -> tuple[PyTree, Segment]:
    """``Algorithm.preprocess_segment`` of a method that uses segments as they are."""
    return state, segment


class LearnerState(NamedTuple):
    """What learning reads and writes; leaves have a leading axis S unless shared by all seeds."""

    state: PyTree  # of the algorithm
    base: PyTree  # the policy that finetuning started from, shared
    buffer_state: PyTree  # of the batch source
    data: PyTree  # of the batch source, shared; a checkpoint does not hold it
    key: PRNGKey  # []
    clock: Array  # int32 []: segments done, shared
    values: PyTree  # a population's values, {field: []}; {} if members differ by seed only


class Train(NamedTuple):
    """The whole training state. Saved and restored as one, a run continues bit for bit."""

    env_state: PyTree  # rollout.EnvState, leaves [S, N, ...]; None if nothing is collected
    learner: LearnerState


class VectorEnv(Protocol):
    """N environments that run whole action chunks; what rollouts and evaluations need.

    States are NamedTuples with leaves [N, ...]; ``gcp_jax.envs.protocol.State`` lists the fields.
    """

    @property
    def reset(self) -> Callable[[PRNGKey], Any]:
        """(keys [N]) -> start states."""

    @property
    def step(self) -> Callable[[Any, Array], tuple[Any, Step]]:
        """(states, chunk [N, h, A]) -> (states, Step with leaves [N, h, ...])."""

    @property
    def film(self) -> Callable[[Any, Array], tuple[Any, Step, Any]]:
        """As ``step``, and the states after each control step, leaves [N, h, ...]."""

    @property
    def autoreset(self) -> Callable[[Any, Any, PRNGKey], Any]:
        """(states, pool of start states [R, ...], keys [N]) -> states, finished ones restarted."""

    @property
    def task(self) -> Callable[[Any], Array] | None:
        """(state of one environment) -> index in ``specs.tasks`` []; None if there is one task."""

    @property
    def specs(self) -> Any:
        """Facts of the task (``gcp_jax.envs.protocol.EnvSpecs``)."""
