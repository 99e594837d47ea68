"""The plain update of the benchmarks and OGPO's update are one function, up to rounding."""

import jax
import numpy as np
import pytest

from benchmarks import update


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 1])
def test_the_plain_update_equals_ogpos(warmup):
    """Parameters, averages and the optimizers' states after one update."""
    small = update.shrink(update.CASES["ogpo 64×16"])
    case = small._replace(fields={**small.fields, "critic_warmup_updates": warmup})
    function, (state, batch, key) = update.make_update(case)
    found, _ = jax.jit(function)(state, batch, key)
    with jax.numpy_rank_promotion("allow"):
        plain = jax.jit(update.make_plain_update(case))(state, batch, key)
    moved = found.actor.params["last"]["kernel"] - state.actor.params["last"]["kernel"]
    assert (np.abs(moved).max() > 0) == (warmup == 0)
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(plain), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5, err_msg=name)
