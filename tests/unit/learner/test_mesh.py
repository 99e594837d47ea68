"""What is computed on four devices is what is computed on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gcp_jax import mesh as mesh_lib
from gcp_jax.core import optim


@pytest.fixture
def on_data(devices):
    """Run a function of one sharded argument on ``count`` data devices, its result gathered along
    axis 0.
    """

    def run(function, x, *, count, out=P("data")):
        sharded = jax.shard_map(
            function, mesh=devices(data=count), in_specs=P("data"), out_specs=out
        )
        return jax.jit(sharded)(x)

    return run


def least_squares(rows):
    """Loss of a linear model on rows [B, 4] of three inputs and a target."""

    def loss(params):
        error = rows[:, :3] @ params["w"] + params["b"] - rows[:, 3]
        return jnp.mean(error**2), {"error": mesh_lib.batch_mean(error)}

    return loss


@pytest.mark.parametrize("count", [1, 4])
def test_gradient_step_is_that_of_the_whole_batch(on_data, count):
    """Plain SGD against the normal equations, so that a gradient scaled by the number of devices
    cannot pass.
    """
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.25)}
    optimizer = optax.sgd(0.1)

    def step(rows):
        new, _, metrics = optim.gradient_step(
            least_squares(rows), params, optimizer.init(params), optimizer, name="line"
        )
        return new, metrics

    new, metrics = on_data(step, jnp.asarray(rows), count=count, out=P())
    error = rows[:, :3] @ [0.5, -1.0, 2.0] + 0.25 - rows[:, 3]
    gradient_w, gradient_b = 2 * error @ rows[:, :3] / 8, 2 * error.mean()
    np.testing.assert_allclose(new["w"], params["w"] - 0.1 * gradient_w, rtol=1e-5)
    np.testing.assert_allclose(new["b"], params["b"] - 0.1 * gradient_b, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["line_gradient_norm"], np.sqrt(gradient_w @ gradient_w + gradient_b**2), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["error"], error.mean(), rtol=1e-5)


def test_sample_keys_do_not_depend_on_the_number_of_devices(on_data):
    def draw(x):
        return jax.vmap(jax.random.uniform)(mesh_lib.sample_keys(jax.random.key(7), x.shape[0]))

    alone = np.asarray(draw(jnp.zeros(8)))
    assert len(np.unique(alone)) == 8
    for count in (1, 4):
        np.testing.assert_array_equal(on_data(draw, jnp.zeros(8), count=count), alone)


def test_helpers_across_devices(on_data):
    x = jnp.arange(8.0)

    def local(function):
        return on_data(lambda part: jnp.broadcast_to(function(part), (1,)), x, count=4)

    np.testing.assert_array_equal(local(lambda _: mesh_lib.data_index()), [0, 1, 2, 3])
    np.testing.assert_array_equal(local(lambda _: mesh_lib.data_size()), [4, 4, 4, 4])
    np.testing.assert_array_equal(local(mesh_lib.batch_mean), [3.5] * 4)
    np.testing.assert_array_equal(local(lambda part: mesh_lib.all_mean(part[0])), [3.0] * 4)
    np.testing.assert_array_equal(local(lambda part: mesh_lib.all_sum(part[0])), [12.0] * 4)
    whole = on_data(lambda part: mesh_lib.gather({"x": part})["x"][None], x, count=4)
    np.testing.assert_array_equal(whole, np.tile(np.arange(8.0), (4, 1)))


def test_helpers_outside_the_compiled_loop_see_one_device():
    x = jnp.arange(4.0)
    assert (mesh_lib.data_index(), mesh_lib.data_size(), mesh_lib.batch_mean(x)) == (0, 1, 1.5)
    for helper in (mesh_lib.all_mean, mesh_lib.all_sum, mesh_lib.gather):
        assert helper(x) is x
    np.testing.assert_array_equal(mesh_lib.zeros_varying_like(x), np.zeros(4))
    np.testing.assert_array_equal(
        mesh_lib.zeros_varying_over_seeds(jax.eval_shape(lambda: x)), np.zeros(4)
    )


@pytest.mark.parametrize(
    ("seeds", "data", "shape"),
    [
        (1, 1, (1, 1)),
        (8, 1, (8, 1)),
        (5, 1, (5, 1)),
        (6, 2, (3, 2)),
        (3, 4, (1, 4)),
        (16, 8, (1, 8)),
        (9, 1, (3, 1)),
    ],
)
def test_make_uses_the_most_devices_that_divide_the_seeds(seeds, data, shape):
    made = mesh_lib.make_mesh(seeds, data=data)
    assert (made.shape["seed"], made.shape["data"]) == shape


@pytest.mark.parametrize("data", [0, 3, 16])
def test_make_refuses_what_does_not_divide_the_devices(data):
    with pytest.raises(
        ValueError,
        match=f"data_parallel is {data}, but 8 devices are visible; choose a divisor of 8",
    ):
        mesh_lib.make_mesh(1, data=data)


def test_layout_says_which_leaves_have_a_seed_axis(devices):
    layout = {
        "state": P("seed"),
        "store": P("seed", None, "data"),
        "clock": P(),
        "rows": P(None, "data"),
    }
    mesh = devices(seed=2, data=2)
    shardings = mesh_lib.shardings(mesh, layout)
    assert {name: sharding.spec for name, sharding in shardings.items()} == layout
    assert shardings["store"].shard_shape((4, 6, 8)) == (2, 6, 4)
