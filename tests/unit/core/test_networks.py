"""Networks against plain numpy and against the layers they are made of."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax.core.layers import SplitDense
from gcp_jax.core.networks import (
    ActorNet,
    CriticNet,
    DenoisingNet,
    Normalizer,
    ValueNet,
    fit_normalizer,
    make_critic_ensemble,
    sinusoidal_embedding,
)


def random_like(tree, seed=0):
    """The same tree with random leaves, so that zero biases and unit scales hide nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape, np.float32)), tree)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(x, params):
    return x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def layer_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * np.asarray(
        params["scale"]
    ) + np.asarray(params["bias"])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def apply(net, params, *args):
    return jax.jit(net.apply)({"params": params}, *args)


def initialize(net, *shapes):
    """Parameters for zero arguments of these shapes."""
    return jax.jit(net.init)(jax.random.key(0), *[jnp.zeros(shape) for shape in shapes])["params"]


def test_split_dense_is_dense_on_the_concatenation():
    """Same parameter tree, same initialization, same values; parts may broadcast against each
    other.
    """
    parts = [normal(0, 5, 1, 3), normal(1, 5, 4, 2), normal(2, 1, 1, 6)]
    split, whole = SplitDense((3, 2, 6), 7), nn.Dense(7)

    def added(params):
        return sum(
            split.apply({"params": params}, i, x, method="part") for i, x in enumerate(parts)
        )

    joined = jnp.concatenate([jnp.broadcast_to(x, (5, 4, x.shape[-1])) for x in parts], -1)
    params = split.init(jax.random.key(3), 0, parts[0], method="part")["params"]
    twin = whole.init(jax.random.key(3), joined)["params"]
    jax.tree.map(np.testing.assert_array_equal, params, twin)
    params = random_like(params)
    np.testing.assert_allclose(added(params), apply(whole, params, joined), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def velocity():
    net = DenoisingNet(obs_dim=3, out_dim=2, hidden=(8, 5), time_dim=6)
    return net, random_like(initialize(net, (1, 3), (1, 2), (1,)))


def test_velocity_net_is_the_authors_mlp(velocity):
    net, params = velocity
    obs, x, t = normal(1, 9, 3), normal(2, 9, 2), jnp.linspace(0.0, 1.0, 9)
    time = dense(
        gelu(dense(np.asarray(sinusoidal_embedding(t, 6)), params["time_layers_0"])),
        params["time_layers_1"],
    )
    y = gelu(dense(np.concatenate([obs, x, time], -1), params["first"]))
    expected = dense(gelu(dense(y, params["layers_0"])), params["last"])
    np.testing.assert_allclose(apply(net, params, obs, x, t), expected, rtol=1e-4, atol=1e-5)


def test_velocity_broadcasting_equals_tiling(velocity):
    """Observations [B, 1, 1, O] beside [B, G, K, D] and times [1, 1, K], as the density of a group
    of chains needs.
    """
    net, params = velocity
    obs, x, t = (
        normal(4, 3, 1, 1, 3),
        normal(5, 3, 4, 5, 2),
        jnp.linspace(0.0, 1.0, 5).reshape(1, 1, 5),
    )
    tiled = apply(net, params, jnp.tile(obs, (1, 4, 5, 1)), x, jnp.tile(t, (3, 4, 1)))
    np.testing.assert_allclose(apply(net, params, obs, x, t), tiled, rtol=1e-5, atol=1e-5)


def test_time_embedding_is_the_transformers_on_a_thousand_t():
    t, dim = np.array([0.0, 0.1, 0.9]), 8
    expected = np.zeros((3, dim))
    for i in range(dim // 2):
        angle = 1000 * t / 10_000 ** (i / (dim // 2 - 1))
        expected[:, i], expected[:, dim // 2 + i] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(
        sinusoidal_embedding(jnp.asarray(t, jnp.float32), dim), expected, atol=1e-3
    )


@pytest.fixture(scope="module")
def critics():
    many = make_critic_ensemble(3, 4, 2, (8, 6))
    return many, initialize(many, (1, 4), (1, 2))


def test_ensemble_members_differ_from_the_start(critics):
    _, params = critics
    kernel = params["SplitDense_0"]["kernel"]
    assert kernel.shape == (3, 6, 8)
    differences = [np.abs(kernel[i] - kernel[j]).min() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(differences) > 0


def test_ensemble_equals_each_critic_alone_and_plain_numpy(critics):
    many, params = critics
    params = random_like(params)
    obs, action = normal(1, 5, 1, 4), normal(2, 5, 3, 2)
    q = apply(many, params, obs, action)
    assert q.shape == (3, 5, 3)
    for member in range(3):
        own = jax.tree.map(lambda x, m=member: x[m], params)
        lone = apply(CriticNet(4, 2, (8, 6)), own, obs, action)
        np.testing.assert_allclose(q[member], lone, rtol=1e-5, atol=1e-5)
        y = dense(np.concatenate([np.tile(obs, (1, 3, 1)), action], -1), own["SplitDense_0"])
        y = gelu(layer_norm(y, own["LayerNorm_0"]))
        y = gelu(layer_norm(dense(y, own["Dense_0"]), own["LayerNorm_1"]))
        np.testing.assert_allclose(lone, dense(y, own["Dense_1"])[..., 0], rtol=1e-4, atol=1e-5)


def test_value_is_the_same_mlp_on_the_observation():
    net, obs = ValueNet((8, 6)), normal(1, 5, 4)
    params = random_like(initialize(net, obs.shape))
    y = gelu(layer_norm(dense(np.asarray(obs), params["Dense_0"]), params["LayerNorm_0"]))
    y = gelu(layer_norm(dense(y, params["Dense_1"]), params["LayerNorm_1"]))
    np.testing.assert_allclose(
        apply(net, params, obs), dense(y, params["Dense_2"])[..., 0], rtol=1e-4, atol=1e-5
    )


def test_normalizer_has_the_moments_of_the_rows_and_leaves_constants():
    shown = np.random.default_rng(0).normal(3.0, 2.0, (50, 3)).astype(np.float32)
    shown[:, 1] = -4.0
    normalizer = fit_normalizer(shown)
    np.testing.assert_allclose(normalizer.mean, shown.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        normalizer.std, [shown[:, 0].std(), 1.0, shown[:, 2].std()], rtol=1e-5
    )
    out = np.asarray(normalizer(jnp.asarray(shown)))
    np.testing.assert_allclose(out.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), [1.0, 0.0, 1.0], atol=1e-5)


@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    rows=st.sampled_from([1, 2, 500, 3_001]),
    ulps=st.integers(-2, 2),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_does_not_change_has_std_1_and_becomes_0(value, rows, ulps):
    """Any float32, also where rounding moves its last bits; .001 more is then seen as .001."""
    obs = np.full((rows, 1), value, np.float32)
    obs[::2] += ulps * np.spacing(np.float32(min(abs(value), 1e30)))
    fitted = fit_normalizer(obs)
    assert float(fitted.std[0]) == 1.0
    scale = max(abs(value), 1.0)
    assert np.abs(np.asarray(fitted(obs)) if scale < 1e5 else 0.0).max() <= 4e-7 * scale
    if not ulps:
        np.testing.assert_array_equal(fitted(obs), 0.0)


@pytest.mark.parametrize("offset", [0.0, 20.7, 742.3, 1e5])
def test_what_changes_has_its_std_beside_a_large_mean(offset):
    """A deviation of 1/500 of the mean, or of 1: in float32 its square is lost in the sum's."""
    rng = np.random.default_rng(0)
    obs = (offset + max(offset / 500, 1.0) * rng.standard_normal((200_001, 1))).astype(np.float32)
    fitted = fit_normalizer(obs)
    exact = obs.astype(np.float64)
    np.testing.assert_allclose(fitted.std, exact.std(0), rtol=1e-6)
    np.testing.assert_allclose(fitted.mean, exact.mean(0), rtol=1e-6, atol=1e-8)


def test_normalizer_cuts_at_ten_and_takes_any_leading_axes():
    normalizer = Normalizer(jnp.array([1.0, 0.0]), jnp.array([0.5, 2.0]))
    obs = jnp.array([[[2.0, 2.0], [100.0, -100.0]]])
    np.testing.assert_allclose(normalizer(obs), [[[2.0, 1.0], [10.0, -10.0]]])
    np.testing.assert_allclose(normalizer(obs[0, 0]), [2.0, 1.0])


def test_a_head_is_a_dense_network_on_all_its_inputs():
    head = ActorNet((3, 2), 4, (8, 5))
    rng = np.random.default_rng(0)
    obs, action = (
        rng.standard_normal((6, 1, 3), np.float32),
        rng.standard_normal((6, 7, 2), np.float32),
    )
    params = jax.tree.map(np.asarray, head.init(jax.random.key(0), obs, action)["params"])
    both = np.concatenate([np.broadcast_to(obs, (6, 7, 3)), action], -1)

    def layer_norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    first = params["SplitDense_0"]
    y = np.asarray(nn.gelu(layer_norm(both @ first["kernel"] + first["bias"])))
    y = np.asarray(nn.gelu(layer_norm(y @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])))
    y = y @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(head.apply({"params": params}, obs, action), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.0), (0.01, 0.1), (1.0, 1.0)])
def test_a_heads_last_layer_starts_as_small_as_asked(scale, expected):
    """``last_scale`` is the variance scaling's, so the kernel's spread goes with its root."""
    kernel = ActorNet((3,), 400, (64,), scale).init(jax.random.key(0), jnp.zeros((1, 3)))["params"][
        "Dense_0"
    ]["kernel"]
    assert np.std(kernel) * np.sqrt(64) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "make",
    [partial(DenoisingNet, 4, 2, (32, 32)), partial(make_critic_ensemble, 3, 4, 2, (32, 32))],
)
def test_bfloat16_rounds_what_is_computed_and_nothing_that_is_kept(make):
    """Parameters, outputs and gradients are float32; values are those of float32 to three digits
    and not to six.
    """
    exact, rounded = make(dtype=jnp.float32), make(dtype=jnp.bfloat16)
    inputs = (
        normal(1, 5, 4),
        normal(2, 5, 2),
        *([jnp.linspace(0, 0.9, 5)] if make.func is DenoisingNet else []),
    )
    params = jax.jit(rounded.init)(jax.random.key(0), *inputs)["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

    def loss(params, net):
        out = net.apply({"params": params}, *inputs)
        return jnp.mean(out**2), out

    graded = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (gradient, near), (true, expected) = (graded(params, net) for net in (rounded, exact))
    assert near.dtype == jnp.float32 and all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient)
    )
    scale = np.abs(expected).max()
    assert 1e-6 < np.abs(near - expected).max() / scale < 0.03
    flat, reference = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (gradient, true)
    )
    assert 1e-6 < np.linalg.norm(flat - reference) / np.linalg.norm(reference) < 0.05
