"""Layers against flax's; gradients against those of plain broadcasting, on 1 and 8 devices."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.core import layers


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("own", "flax"),
    [(layers.Dense(5), nn.Dense(5)), (layers.LayerNorm(), nn.LayerNorm())],
    ids=["Dense", "LayerNorm"],
)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 1, 3)])
def test_layers_are_those_of_flax(own, flax, shape):
    """Same parameters; same values and gradients of parameters that hide nothing."""
    x = normal(0, *shape)
    params = own.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(1), x))
    params = jax.tree.map(lambda leaf: normal(2, *leaf.shape), params)

    def loss(params, x, net):
        return jnp.sum(jnp.sin(net.apply(params, x)))

    for argument in (0, 1):
        ours = jax.grad(loss, argument)(params, x, own)
        theirs = jax.grad(loss, argument)(params, x, flax)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)
    np.testing.assert_allclose(own.apply(params, x), flax.apply(params, x), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_result_has_the_dtype_of_the_layer(dtype):
    """bfloat16 is rounded at the end of a normalization and not within, as in flax."""
    x = normal(0, 4, 3)
    for own, flax in [
        (layers.Dense(5, dtype=dtype), nn.Dense(5, dtype=dtype)),
        (layers.LayerNorm(dtype=dtype), nn.LayerNorm(dtype=dtype)),
    ]:
        params = own.init(jax.random.key(1), x)
        ours = own.apply(params, x)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, flax.apply(params, x))


@pytest.mark.parametrize("shape", [(1,), (4, 1, 1), (1, 3, 2), (4, 1, 2), (1, 3, 1), (4, 3, 2)])
def test_broadcast_has_the_value_and_gradients_of_broadcast_to(shape):
    """In reverse and in forward mode, wherever the axes of size 1 are."""
    leading = (4, 3, 2)[: len(shape)]
    x = normal(0, *shape, 3)
    weight = normal(1, *leading, 3)

    @partial(jax.jit, static_argnums=0)
    def found(broadcast, x):
        def weighted(x):
            return weight * broadcast(x, leading)

        _, tangent = jax.jvp(weighted, (x,), (x,))
        return weighted(x), tangent, jax.grad(lambda x: jnp.sum(weighted(x)))(x)

    def plain(x, leading):
        return jnp.broadcast_to(x, (*leading, 3))

    value, tangent, gradient = found(layers.broadcast, x)
    expected_value, expected_tangent, expected_gradient = found(plain, x)
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_array_equal(tangent, expected_tangent)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 3), (16, 4, 3)])
def test_the_gradient_crosses_devices_in_the_shape_of_the_parameters(shape):
    """The sums over rows are taken on each device; what is all-reduced are the parameters."""
    net = nn.Sequential([layers.Dense(5), layers.LayerNorm()])
    x = normal(0, *shape)
    params = net.init(jax.random.key(1), x)

    def loss(params, x):
        return mesh_lib.all_mean(jnp.mean(net.apply(params, x) ** 2 * x[..., :1]))

    mesh = mesh_lib.make_mesh(1, data=8)
    split = jax.shard_map(
        jax.grad(loss), mesh=mesh, in_specs=(P(), P(mesh_lib.DATA)), out_specs=P()
    )
    compiled = jax.jit(split).lower(params, x).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        compiled(params, x),
        jax.grad(loss)(params, x),
    )
    reduced = re.findall(r"= \(?(.*?)\)? all-reduce\(", compiled.as_text())
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for line in reduced
        for shape in re.findall(r"f32\[([\d,]*)\]", line)
    ]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(params))
