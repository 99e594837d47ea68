"""The method of a configuration, its source of batches, and its share of demonstrations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.run_configs import small_config

from gcp_jax.config import ConfigError
from gcp_jax.core.demonstrations import demonstrations_of
from gcp_jax.experiments import assemble
from gcp_jax.run.assemble import assemble_finetuning
from gcp_jax.run.sizes import run_sizes
from gcp_jax.types import Segment, Step

MARK = 99.0


def setup_of(config, demonstrations=None):
    task = assemble.make_task(config, film=False)
    return assemble_finetuning(config, task, demonstrations=demonstrations)


def record(shape, specs, mark):
    """Steps of ``shape`` whose observations are ``mark``."""
    zeros = np.zeros(shape, np.float32)
    no = np.zeros(shape, bool)
    obs = np.full((*shape, specs.obs_dim), mark, np.float32)
    return Step(
        obs=obs,
        action=np.zeros((*shape, specs.action_dim), np.float32),
        reward=zeros,
        next_obs=obs,
        terminated=no,
        truncated=no,
        success=no,
        executed=np.ones(shape, bool),
    )


@pytest.mark.parametrize(("fraction", "marked"), [(0.0, 0), (0.25, 4), (0.5, 8)])
def test_demonstrations_take_their_share_of_every_batch(fraction, marked):
    config = small_config(**{"finetune.demo_fraction": fraction})
    sizes = run_sizes(config, assemble.make_task(config, film=False).env.specs)
    demonstrations = None
    if fraction:
        steps = record((8, 3), sizes.specs, MARK)
        demonstrations = demonstrations_of(steps)
    source = setup_of(config, demonstrations).algorithm.source
    steps = record((2, 4, sizes.specs.chunk), sizes.specs, 0.0)
    segment = jax.tree.map(jnp.asarray, Segment(steps=steps, extras={}))
    buffer_state = jax.jit(source.init)(segment)
    step = jax.jit(source.step)
    _, batch = step(buffer_state, source.data, segment, jax.random.key(0), jnp.int32(0))
    assert source.batch_size == 16
    assert batch.transitions.obs.shape[:2] == (sizes.updates, 16)
    is_marked = np.asarray(batch.transitions.obs)[..., 0] == MARK
    np.testing.assert_array_equal(np.sum(is_marked, -1), marked)


def test_cal_ql_has_the_returns_of_demonstrations_too():
    """Of the whole batch, not only of its replayed half."""
    fields = {"algorithm.calql": 5.0, "algorithm.critic_warmup_updates": 9}
    config = small_config("ogpo", **{"finetune.demo_fraction": 0.5, **fields})
    sizes = run_sizes(config, assemble.make_task(config, film=False).env.specs)
    demonstrations = demonstrations_of(record((8, 3), sizes.specs, MARK))
    source = setup_of(config, demonstrations).algorithm.source
    segment = Segment(steps=record((2, 4, sizes.specs.chunk), sizes.specs, 0.0), extras={})
    segment = jax.tree.map(jnp.asarray, segment)
    store = jax.eval_shape(source.init, segment)
    _, batch = jax.eval_shape(source.step, store, source.data, segment, jax.random.key(0), 0)
    assert batch.return_to_go.shape == (sizes.updates, 16)


def test_an_on_policy_method_learns_from_minibatches_of_its_segment():
    config = small_config(
        "dppo", **{"algorithm.epochs": 3, "algorithm.minibatches": 2, "finetune.unroll_chunks": 4}
    )
    source = setup_of(config).algorithm.source
    assert (source.updates, source.batch_size) == (6, 8)


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        (
            "dppo",
            {"finetune.demo_fraction": 0.5},
            "dppo learns from what it records while acting",
        ),
        (
            "dsrl",
            {"finetune.demo_fraction": 0.5, "algorithm.mode": "sac"},
            "dsrl learns from what it records while acting",
        ),
        ("qc", {"finetune.demo_fraction": 0.01}, "16 replayed and 0 demonstrated transitions"),
        (
            "qc",
            {"finetune.demo_fraction": 0.3, "data_parallel": 2, "finetune.reset_pool": 2},
            r"must be positive multiples of data_parallel \(2\)",
        ),
    ],
)
def test_shares_that_are_impossible_are_refused(algorithm, fields, message):
    config = small_config(algorithm, **fields)
    with pytest.raises(ConfigError, match=message):
        setup_of(config)
