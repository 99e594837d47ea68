"""The updates of one seed's segment: sample batches, scan over them, skip what is not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gcp_jax import mesh
from gcp_jax.learner import nonfinite
from gcp_jax.types import Algorithm, Array, Batch, LearnerState, Metrics, PRNGKey, PyTree, Segment


class Keys(NamedTuple):
    """The keys of one seed's segment, each used once.

    Collecting and learning are two programs. Both split the key that the ``LearnerState`` carries,
    and each takes its own part of the split.
    """

    next: PRNGKey  # carried to the next segment
    collect: PRNGKey
    source: PRNGKey
    update: PRNGKey
    diagnose: PRNGKey

    @classmethod
    def _split(cls, key: PRNGKey) -> Keys:
        return cls(*jax.random.split(key, len(cls._fields)))

    @classmethod
    def for_collect(cls, key: PRNGKey) -> PRNGKey:
        """The key that the collecting program uses."""
        return cls._split(key).collect

    @classmethod
    def for_learn(cls, key: PRNGKey) -> Keys:
        """The keys that the learning program uses: all except ``collect``."""
        return cls._split(key)


class Sampled(NamedTuple):
    """What the updates of one seed's segment start from."""

    state: PyTree  # of the algorithm, after ``preprocess_segment``
    buffer_state: PyTree  # with the segment written to it
    batches: Batch  # leaves [U, B, ...]
    segment: Segment | None  # preprocessed


def sample_batches(
    algorithm: Algorithm, learner: LearnerState, segment: Segment | None, keys: Keys
) -> Sampled:
    """Preprocess one seed's segment, store it, and sample the batches of its updates."""
    state = learner.state
    if segment is not None:
        preprocessed, segment = algorithm.preprocess_segment(state, segment)
        state, _ = nonfinite.keep_if_finite(state, preprocessed)
    buffer_state, batches = algorithm.source.step(
        learner.buffer_state, learner.data, segment, keys.source, learner.clock
    )
    return Sampled(state=state, buffer_state=buffer_state, batches=batches, segment=segment)


def run_updates(
    algorithm: Algorithm, state: PyTree, batches: Batch, keys: PRNGKey
) -> tuple[PyTree, Metrics]:
    """Scan ``update`` over batches [U, B, ...].

    A gradient that is not finite is skipped by ``core.optim.gradient_step``. If the state becomes
    non-finite for another reason, none of the updates is kept.

    Returns:
      The state, and the means of the metrics over updates and devices, with flags of those that are
      missing and the counts of non-finite updates.
    """

    def update(state: PyTree, inputs: tuple[Batch, PRNGKey]) -> tuple[PyTree, Any]:
        batch, key = inputs
        state, metrics = algorithm.update(state, batch, key)
        return state, (metrics, nonfinite.update_flags(metrics))

    new_state, (metrics, flags) = jax.lax.scan(update, state, (batches, keys))
    means = nonfinite.segment_means(metrics)
    flags = mesh.all_mean(flags)
    state, discarded = nonfinite.keep_if_finite(state, new_state)
    return state, means | nonfinite.nonfinite_summary(flags, discarded)


def update_if_ready(
    algorithm: Algorithm, state: PyTree, batches: Batch, keys: PRNGKey, ready: Array | None
) -> tuple[PyTree, Metrics]:
    """``run_updates`` if the scalar ``ready`` is True (None: always); else all metrics are 0."""

    def run(state: PyTree) -> tuple[PyTree, Metrics]:
        return run_updates(algorithm, state, batches, keys)

    if ready is None:
        return run(state)
    _, metric_shapes = jax.eval_shape(run, state)
    zeros = jax.tree.map(mesh.zeros_varying_over_seeds, metric_shapes)

    def update(state: PyTree) -> tuple[PyTree, Metrics]:
        state, metrics = run(state)
        return state, jax.tree.map(jnp.add, zeros, metrics)

    def skip(state: PyTree) -> tuple[PyTree, Metrics]:
        return state, zeros

    result: tuple[PyTree, Metrics] = jax.lax.cond(ready, update, skip, state)
    return result
