"""``mean_over_blocks`` against the mean of the whole batch: alone, over seeds and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.core import optim

PARAMS = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.3)}
SCALE = jnp.array([1.0, 3.0])  # of two seeds


def batch(samples):
    x = np.random.default_rng(0).standard_normal((samples, 3))
    return jnp.asarray(x, jnp.float32)


def block_loss(scale):
    """A loss that closes over a number of the seed, as a method over its hyper-parameters."""

    def loss(params, x):
        y = jnp.sin(x @ params["w"] + params["b"]) * scale
        return jnp.mean(y**2), {"y": jnp.mean(y)}

    return loss


def in_blocks(params, x, scale, blocks=4):
    parts = x.reshape(blocks, -1, 3)
    return optim.mean_over_blocks(block_loss(scale), params, parts, used=jnp.int32(blocks))


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)


def test_value_gradient_and_metrics_are_those_of_the_whole_batch():
    """Also beside another term of the loss, and with a factor before it."""
    x = batch(32)

    def loss(params, part):
        value, metrics = part(params)
        return 3.0 * value + jnp.sum(params["w"] ** 2), metrics

    whole = jax.value_and_grad(
        lambda params: loss(params, lambda p: block_loss(2.0)(p, x)), has_aux=True
    )
    parts = jax.value_and_grad(
        lambda params: loss(params, lambda p: in_blocks(p, x, 2.0)), has_aux=True
    )
    assert_close(parts(PARAMS), whole(PARAMS))


def test_seeds_in_one_program_take_their_own_steps():
    x = batch(32)
    together = jax.vmap(jax.grad(lambda p, s: in_blocks(p, x, s)[0]), in_axes=(None, 0))
    alone = [jax.grad(lambda p, s=s: block_loss(s)(p, x)[0])(PARAMS) for s in SCALE]
    assert_close(together(PARAMS, SCALE), jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


def test_a_step_over_devices_is_that_on_one():
    """Each device takes its own samples in blocks; one gradient crosses between them."""
    x = batch(64)
    optimizer = optax.sgd(1.0)

    def step(params, x):
        new, _, metrics = optim.gradient_step(
            lambda p: in_blocks(p, x, 2.0),
            params,
            optimizer.init(params),
            optimizer,
            name="actor",
        )
        return new, mesh_lib.all_mean(metrics["y"]), metrics["actor_gradient_norm"]

    mesh = mesh_lib.make_mesh(1, data=8)
    split = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(mesh_lib.DATA)), out_specs=P())
    compiled = jax.jit(split).lower(PARAMS, x).compile()
    assert_close(compiled(PARAMS, x), step(PARAMS, x))
    assert "all-reduce" in compiled.as_text()


def test_each_device_computes_as_many_blocks_as_it_uses():
    """The samples of the other blocks have a weight of 0."""
    x = batch(64)
    blocks_of_device = jnp.arange(8) % 5  # of four
    used = jnp.arange(8)[None] < 2 * blocks_of_device[:, None]  # samples, two in a block
    weight = used.reshape(64).astype(jnp.float32)

    def loss(params, samples):
        x, weight = samples
        y = jnp.sin(x @ params["w"] + params["b"])
        return jnp.mean(weight * y**2), {"y": jnp.mean(weight * y)}

    def gradient(params, x, weight, used):
        blocks = (x.reshape(4, -1, 3), weight.reshape(4, -1))

        def mean_loss(params):
            value, metrics = optim.mean_over_blocks(loss, params, blocks, used=used[0])
            return mesh_lib.all_mean(value), mesh_lib.all_mean(metrics["y"])

        return jax.grad(mean_loss, has_aux=True)(params)

    mesh = mesh_lib.make_mesh(1, data=8)
    data = P(mesh_lib.DATA)
    split = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), data, data, data), out_specs=P())
    found = jax.jit(split)(PARAMS, x, weight, blocks_of_device)
    whole, metrics = jax.grad(lambda p: loss(p, (x, weight)), has_aux=True)(PARAMS)
    assert_close(found, (whole, metrics["y"]))
