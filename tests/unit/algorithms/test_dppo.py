"""DPPO's equations against float64 numpy, on denoising nets that are affine and so known in closed
form.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.by_hand import vector
from helpers.off_policy import assert_every_switch_is_tested, population_outcomes
from jax.sharding import PartitionSpec as P
from scipy import stats

from gcp_jax import mesh as mesh_lib
from gcp_jax.algorithms import dppo
from gcp_jax.core import denoising as chain_lib
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.learner import batch_sources
from gcp_jax.types import Batch, Segment, Specs, Step

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
ROWS, COLUMNS, STEPS, SIGMA = 4, 4, 3, 0.05
NORMALISER = Normalizer(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))
BASE, MOVED, FAR = np.array([[0.1, -0.2], [0.16, -0.27], [0.5, -0.6]])
SMALL = dppo.Config(
    gamma=0.9,
    epochs=1,
    minibatches=2,
    denoising_gamma=0.7,
    clip=0.2,
    clip_base=0.02,
    max_kl=1e3,
    actor_lr=0.01,
    value_lr=0.01,
    value_hidden=(8,),
    min_std=0.1,
)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


# The net: bias + x/2 + 0.3 s_0 + 0.2 t, a flow's velocity or a diffusion's noise.


def affine_policy(family):
    config = PolicyConfig(family=family, chunk=2, steps=STEPS, sigma=SIGMA)

    def net(params, obs, inner):
        wide = obs[..., :1].reshape(*obs.shape[:-1], *(1,) * inner, 1)

        def bound(x, t):
            return (
                params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
                + 0.5 * x
                + 0.3 * wide
                + 0.2 * t[..., None]
            )

        return bound

    def deterministic_step(params, obs, inner=0):
        return config.sampler.deterministic_step(net(params, obs, inner))

    return Policy(
        init=None,
        sample=lambda params, obs, z: chain_lib.integrate_ode(
            deterministic_step(params, obs), z, config.sampler.times
        ),
        sample_chain=None,
        action=chain_lib.chain_action,
        log_density=None,
        imitation_loss=None,
        stochastic_step=lambda params, obs, inner=0: config.sampler.stochastic_step(
            net(params, obs, inner)
        ),
        deterministic_step=deterministic_step,
        config=config,
        specs=SPECS,
    )


class Method:
    """DPPO on one configuration, with its parts compiled."""

    def __init__(self, config, family, policy=None):
        self.config, self.family = config, family
        self.policy = policy or affine_policy(family)
        self.source = batch_sources.on_policy(
            rows=ROWS, columns=COLUMNS, **dppo.rollout_needs(config)
        )
        self.algorithm = dppo.make(config, self.policy, self.source)
        self.act, self.prepare, self.update, self.eval_policy = map(
            jax.jit,
            (
                self.algorithm.act,
                self.algorithm.preprocess_segment,
                self.algorithm.update,
                self.algorithm.eval_policy,
            ),
        )
        self.batches = jax.jit(
            lambda segment: self.source.step(None, None, segment, jax.random.key(5), jnp.int32(0))[
                1
            ]
        )

    @functools.cached_property
    def fresh(self):
        net = (
            jax.jit(self.policy.init)(jax.random.key(1))
            if self.policy.init
            else {"bias": jnp.array(BASE)}
        )
        return jax.jit(self.algorithm.init)(
            jax.random.key(0), {"net": net, "normalizer": NORMALISER}
        )

    def state(self, bias=MOVED):
        """The fresh state with θ moved away from the base, and a noise net that is not almost
        constant.
        """
        actor = {**self.fresh.actor, "net": {"bias": jnp.array(bias)}}
        if actor["noise"] is not None:
            last = 0.3 * np.random.default_rng(3).standard_normal(
                actor["noise"]["Dense_1"]["kernel"].shape
            )
            actor["noise"] = {
                **actor["noise"],
                "Dense_1": {"kernel": jnp.float32(last), "bias": jnp.zeros(2)},
            }
        return self.fresh._replace(actor=actor)

    @functools.cached_property
    def segment(self):
        """What the base's θ collects."""
        return self.collect(self.state(BASE))

    def collect(self, state):
        steps = recorded(0)
        obs, key = steps.obs[:, :, 0].reshape(-1, 2), jax.random.key(2)
        chunk, extras = jax.tree.map(
            lambda x: x.reshape(ROWS, COLUMNS, *x.shape[1:]), self.act(state, obs, key)
        )
        return Segment(steps._replace(action=chunk), extras)

    def minibatch(self, state, index=0):
        """(state after ``prepare``, one minibatch of the collected segment)."""
        state, segment = self.prepare(state, self.segment)
        return state, jax.tree.map(lambda x: x[index], self.batches(segment))


@functools.cache
def method(config, family="flow"):
    return Method(config, family)


def recorded(seed, scale=1.0):
    """Chunk rows [4, 4, 2]: column 0 never ends, 1 meets a time limit inside its second row, 2
    terminates at the end of its third, 3 does both, the termination inside a row.
    """
    rng = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS, SPECS.chunk)
    obs, following = rng.standard_normal((2, *shape, 2)).astype(np.float32)
    terminated, truncated, executed = (
        np.zeros(shape, bool),
        np.zeros(shape, bool),
        np.ones(shape, bool),
    )
    truncated[1, 1], executed[1, 1, 1] = True, False
    terminated[2, 2, 1] = True
    truncated[0, 3, 1] = True
    terminated[2, 3], executed[2, 3, 1] = True, False
    reward = (scale * rng.standard_normal(shape)).astype(np.float32)
    action = np.zeros((*shape, 1), np.float32)
    return jax.tree.map(
        jnp.asarray,
        Step(
            obs, action, reward, following, terminated, truncated, np.zeros(shape, bool), executed
        ),
    )


# By hand, in float64


def normalize(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


def hidden_layer(y, norm):
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * norm[
        "scale"
    ] + norm["bias"]
    return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def value_of(params, obs):
    """V(s) of a net with one hidden layer; obs as recorded."""
    params = jax.tree.map(np.asarray, params)
    return dense(
        hidden_layer(dense(normalize(obs), params["Dense_0"]), params["LayerNorm_0"]),
        params["Dense_1"],
    )[..., 0]


def sigma_of(config, params, obs, t):
    """ReinFlow's σ(s, t) of normalized obs [..., 2]: [..., D]."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    angle = 1000.0 * t * np.exp(-np.log(10_000.0) * np.arange(16) / 15)
    time = np.broadcast_to(np.concatenate([np.sin(angle), np.cos(angle)]), (*obs.shape[:-1], 32))
    y = hidden_layer(
        dense(np.concatenate([obs, time], -1), params["SplitDense_0"]), params["LayerNorm_0"]
    )
    y = dense(hidden_layer(dense(y, params["Dense_0"]), params["LayerNorm_1"]), params["Dense_1"])
    return config.noise_low + (config.noise_high - config.noise_low) / (1 + np.exp(-y))


def survival(k):
    """ᾱ_k of the cosine schedule with T = STEPS."""
    alpha_bar = [np.cos((i / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(STEPS + 1)]
    return np.prod([1 - min(1 - alpha_bar[i] / alpha_bar[i - 1], 0.999) for i in range(1, k + 1)])


def denoised(family, bias, obs, x, step):
    """(mean, std of the family's stochastic step, the deterministic step) from x [..., D] at step 0
    … K−1.
    """
    t = step / STEPS
    net = bias + 0.5 * x + 0.3 * obs[..., :1] + 0.2 * t
    if family == "flow":
        mean = np.clip(x + (net + 0.5 * SIGMA**2 * (t * net - x)) / STEPS, -1, 1)
        return mean, SIGMA * np.sqrt(1 - t), x + net / STEPS
    now, following = survival(STEPS - step), survival(STEPS - step - 1)
    alpha = now / following
    clean = np.clip((x - np.sqrt(1 - now) * net) / np.sqrt(now), -1, 1)
    kept = np.sqrt(alpha) * (1 - following) / (1 - now)
    mean = np.sqrt(following) * (1 - alpha) / (1 - now) * clean + kept * x  # DDPM eq. 7
    own = np.sqrt((1 - following) / (1 - now) * (1 - alpha))
    implied = (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
    return mean, max(own, SIGMA), np.sqrt(following) * clean + np.sqrt(1 - following) * implied


def stochastic_step(config, family, actor, obs, x, step):
    """(mean, std) of DPPO's or ReinFlow's step."""
    mean, std, straight = denoised(
        family, np.asarray(actor["net"]["bias"], np.float64), obs, x, step
    )
    if config.noise == "learned":
        return np.clip(straight, -1, 1), sigma_of(config, actor["noise"], obs, step / STEPS)
    return mean, np.full_like(x, max(std, config.min_std))


def log_densities(config, family, actor, obs, chain):
    """(lp [B, K'] or [B, 1], σ, every dimension's log-density) of chains [B, K'+1, D]; obs
    normalized.
    """
    trained = chain.shape[1] - 1
    made = [
        stochastic_step(config, family, actor, obs, chain[:, i], STEPS - trained + i)
        for i in range(trained)
    ]
    each = np.stack([stats.norm.logpdf(chain[:, i + 1], *made[i]) for i in range(trained)], 1)
    std = np.stack([std for _, std in made], 1)
    if config.noise == "learned":
        return each.sum((1, 2))[:, None] / (trained + 1) / SPECS.flat_action_dim, std, each
    return np.clip(each, -5, 2).mean(-1), std, each


def schedule(config, count):
    if count == 1:
        return np.array([config.clip])
    share = (np.exp(3 * np.arange(count) / (count - 1)) - 1) / (np.exp(3) - 1)
    return config.clip_base + (config.clip - config.clip_base) * share


def losses(config, family, actor, value_net, batch):
    """The metrics of one update by the paper's formulas, and the whole loss of the actor."""
    data, extras = (
        batch.transitions,
        {k: np.asarray(v, np.float64) for k, v in batch.transitions.extras.items()},
    )
    lp, std, _ = log_densities(config, family, actor, normalize(data.obs), extras["chain"])
    ratio = np.exp(lp - extras["log_density"])
    count = ratio.shape[1]
    advantage = (extras["advantage"] - extras["advantage"].mean()) / extras["advantage"].std()
    total, outside = 0.0, 0
    for b in range(len(ratio)):
        for k in range(count):
            epsilon, weighted = (
                schedule(config, count)[k],
                config.denoising_gamma ** (count - 1 - k) * advantage[b],
            )
            total -= min(
                ratio[b, k] * weighted, np.clip(ratio[b, k], 1 - epsilon, 1 + epsilon) * weighted
            )
            outside += abs(ratio[b, k] - 1) > epsilon
    kl = ratio - 1 - np.log(ratio)
    bonus = config.entropy_weight * np.log(std).mean() if config.noise == "learned" else 0.0
    metrics = {
        "policy_loss": total / ratio.size,
        "ratio": ratio.mean(),
        "approx_kl": kl.mean(),
        "clip_fraction": outside / ratio.size,
        "value_loss": 0.5 * 0.5 * np.mean((value_of(value_net, data.obs) - extras["return"]) ** 2),
        **{f"update_kl_step_{k}": kl[:, k].mean() for k in range(count)},
    }
    return metrics, total / ratio.size - bonus


def noise_of(key, count, shape):
    """One key a sample, by its place."""
    draws = [jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(count)]
    return np.asarray(draws, np.float64)


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def changed(first, second):
    return not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


LEARNED = small(noise="learned", entropy_weight=0.5, clip=0.02)
CASES = {
    "flow": (SMALL, "flow"),
    "flow, narrow clip": (small(clip=0.01, clip_base=0.01), "flow"),
    "flow, the last step": (small(num_finetuned_steps=1, clip=0.05), "flow"),
    "flow, the last two steps": (small(num_finetuned_steps=2), "flow"),
    "flow, densities beyond their bounds": (small(min_std=0.02), "flow"),
    "diffusion": (SMALL, "diffusion"),
    "diffusion, the last two steps": (small(num_finetuned_steps=2, min_std=0.3), "diffusion"),
    "learned noise": (LEARNED, "flow"),
    "learned noise, the last two steps": (
        dataclasses.replace(LEARNED, num_finetuned_steps=2),
        "flow",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_chains_start_with_the_base_and_are_scored_as_they_were_drawn(name):
    """K − K' steps of the base, K' of θ, noise cut at ±3; the densities are those of the stored,
    unclipped points.
    """
    config, family = CASES[name]
    made, count, key = method(config, family), ROWS * COLUMNS, jax.random.key(2)
    state, segment = made.state(), made.collect(made.state())
    trained = config.num_finetuned_steps or STEPS
    obs = normalize(segment.steps.obs[:, :, 0]).reshape(count, 2)
    noise = noise_of(key, count, (STEPS + 1, 2))
    points = [noise[:, 0]]
    for i in range(STEPS):
        actor = {**state.actor, "net": state.base if i < STEPS - trained else state.actor["net"]}
        mean, std = stochastic_step(config, family, actor, obs, points[-1], i)
        points.append(mean + std * np.clip(noise[:, i + 1], -3, 3))
    expected = np.stack(points[STEPS - trained :], 1)
    chain = np.asarray(segment.extras["chain"]).reshape(count, trained + 1, 2)
    np.testing.assert_allclose(chain, expected, atol=1e-4)
    executed = np.asarray(segment.steps.action)[..., 0].reshape(count, 2)
    np.testing.assert_allclose(executed, np.clip(chain[:, -1], -1, 1))
    assert np.abs(chain[:, -1]).max() > 1
    lp = log_densities(config, family, state.actor, obs, chain.astype(np.float64))[0]
    assert lp.shape[1] == (1 if config.noise == "learned" else trained)
    np.testing.assert_allclose(
        segment.extras["log_density"].reshape(lp.shape), lp, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_the_papers_formulas(name):
    config, family = CASES[name]
    made = method(config, family)
    state, batch = made.minibatch(made.state(FAR if "bounds" in name else MOVED))
    after, metrics = made.update(state, batch, jax.random.key(0))
    expected, _ = losses(config, family, state.actor, state.value.params, batch)
    assert metrics.keys() == expected.keys() | {"actor_gradient_norm", "stopped", "reward_scale"}
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=5e-4, atol=2e-5, err_msg=key)
    assert metrics["clip_fraction"] > 0

    def loss(at, step):
        actor = jax.tree.map(lambda x: np.array(x, np.float64), state.actor)
        bias = (actor["net"] if at == "net" else actor["noise"]["Dense_1"])["bias"]
        bias += step
        return losses(config, family, actor, state.value.params, batch)[1]

    gradient = optax.tree.get(
        after.actor_opt_state, "mu"
    )  # (1 − 0.9) times the gradient after the first step
    found = {"net": gradient["net"]["bias"]}
    if config.noise == "learned":
        found["noise"] = gradient["noise"]["Dense_1"]["bias"]
    for at, actual in found.items():
        by_hand = [(loss(at, step) - loss(at, -step)) / 2e-6 for step in 1e-6 * np.eye(2)]
        np.testing.assert_allclose(10 * np.asarray(actual), by_hand, rtol=2e-3, atol=1e-4)


def test_the_case_of_bounded_densities_meets_both_bounds():
    config, family = CASES["flow, densities beyond their bounds"]
    made = method(config, family)
    state, batch = made.minibatch(made.state(FAR))
    chain = np.asarray(batch.transitions.extras["chain"], np.float64)
    each = log_densities(config, family, state.actor, normalize(batch.transitions.obs), chain)[2]
    assert (each > 2).any()
    assert (each < -5).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_clip_grows_from_the_noisiest_step_to_the_last(count):
    config = dppo.Config(clip=0.3, clip_base=0.05)
    epsilon = dppo.clip_schedule(config, count)
    np.testing.assert_allclose(epsilon, schedule(config, count), rtol=1e-5)
    np.testing.assert_allclose(epsilon[-1], 0.3, rtol=1e-5)
    if count > 1:
        np.testing.assert_allclose(epsilon[0], 0.05, rtol=1e-5)


NETS = {
    "flow": (small(), PolicyConfig(chunk=2, hidden=(8,), steps=3)),
    "flow, the last two steps": (
        small(num_finetuned_steps=2),
        PolicyConfig(chunk=2, hidden=(8,), steps=3),
    ),
    "flow, marginal": (small(), PolicyConfig(chunk=2, hidden=(8,), steps=3, scheme="marginal")),
    "diffusion": (small(), PolicyConfig(family="diffusion", chunk=2, hidden=(8,), steps=3)),
    "learned noise": (LEARNED, PolicyConfig(chunk=2, hidden=(8,), steps=3)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_first_ratio_is_one(name):
    """act → prepare → source → update without a change of θ: every ratio is 1 to within the last
    bits.
    """
    config, policy = NETS[name]
    config = dataclasses.replace(config, clip=1e-5, clip_base=1e-5)
    made = Method(config, policy.family, policy_lib.make_policy(policy, SPECS))
    state, segment = made.prepare(made.fresh, made.collect(made.fresh))
    _, metrics = made.update(
        state, jax.tree.map(lambda x: x[0], made.batches(segment)), jax.random.key(0)
    )
    assert metrics["clip_fraction"] == 0
    np.testing.assert_allclose(metrics["ratio"], 1.0, atol=5e-6)
    assert abs(metrics["approx_kl"]) < 1e-6
    assert metrics["actor_gradient_norm"] > 1e-4


def targets_by_hand(config, params, steps, scale):
    """(advantage, return) [T, N] by an explicit recursion, one column at a time."""
    steps = jax.tree.map(lambda x: np.asarray(x, np.float64), steps)
    advantage = np.zeros((ROWS, COLUMNS))
    v_t = value_of(params, steps.obs[:, :, 0])
    for n in range(COLUMNS):
        following = 0.0
        for t in reversed(range(ROWS)):
            count = int(steps.executed[t, n].sum())
            reward = sum(config.gamma**i * steps.reward[t, n, i] for i in range(count)) / scale
            bootstrap = (
                0.0
                if steps.terminated[t, n].any()
                else value_of(params, steps.next_obs[t, n, count - 1])
            )
            delta = reward + config.gamma**count * bootstrap - v_t[t, n]
            ended = steps.terminated[t, n].any() or steps.truncated[t, n].any()
            following = delta + (
                0.0 if ended else config.gae_lambda * config.gamma**count * following
            )
            advantage[t, n] = following
    return advantage, advantage + v_t


def test_advantages_are_cut_at_ends_and_a_time_limit_bootstraps_from_its_true_successor():
    """γ = ½, λ = ½, chunks of two steps. The columns of ``recorded`` worked out one by one."""
    made = method(small(gamma=0.5, gae_lambda=0.5, scale_rewards=False))
    state, segment = made.prepare(made.state(), made.segment)
    advantage, steps = np.asarray(segment.extras["advantage"]), made.segment.steps
    v = functools.partial(value_of, state.value.params)
    v_t, r = v(steps.obs[:, :, 0]), np.asarray(steps.reward, np.float64)
    folded, later = r[..., 0] + 0.5 * r[..., 1], v(steps.next_obs)
    expected = np.zeros((4, 4))
    through = folded + 0.25 * later[..., 1] - v_t  # δ of a chunk in which nothing ends
    expected[3] = through[3]  # the segment's last row bootstraps, whatever comes next
    for t in (2, 1, 0):
        expected[t, 0] = through[t, 0] + 0.125 * expected[t + 1, 0]
    expected[2, 1] = through[2, 1] + 0.125 * expected[3, 1]
    expected[1, 1] = r[1, 1, 0] + 0.5 * later[1, 1, 0] - v_t[1, 1]  # time limit after one step
    expected[0, 1] = through[0, 1] + 0.125 * expected[1, 1]
    expected[2, 2] = folded[2, 2] - v_t[2, 2]  # terminated
    expected[1, 2] = through[1, 2] + 0.125 * expected[2, 2]
    expected[0, 2] = through[0, 2] + 0.125 * expected[1, 2]
    expected[2, 3] = r[2, 3, 0] - v_t[2, 3]  # terminated after one step
    expected[1, 3] = through[1, 3] + 0.125 * expected[2, 3]
    expected[0, 3] = through[0, 3]  # time limit at its last step
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(segment.extras["return"], expected + v_t, rtol=1e-4, atol=1e-5)
    assert segment.extras["chain"] is not None
    assert_same(segment.steps, made.segment.steps)


def running_returns(config, steps):
    """The discounted return so far after each chunk, from 0 at the segment's start and after an
    end; a flat list.
    """
    steps, found = jax.tree.map(np.asarray, steps), []
    for n in range(COLUMNS):
        total, decay = 0.0, 0.0
        for t in range(ROWS):
            count = int(steps.executed[t, n].sum())
            total = decay * total + sum(
                config.gamma**i * float(steps.reward[t, n, i]) for i in range(count)
            )
            found.append(total)
            decay = 0.0 if (steps.terminated | steps.truncated)[t, n].any() else config.gamma**count
    return found


@pytest.mark.parametrize("scale_rewards", [True, False])
def test_rewards_are_divided_by_the_std_of_all_running_returns(scale_rewards):
    config = small(scale_rewards=scale_rewards)
    made = method(config)
    state, seen = made.state(), []
    for steps in (recorded(0, scale=3.0), recorded(1, scale=9.0)):
        segment = made.segment._replace(steps=steps)
        state, prepared = made.prepare(state, segment)
        seen += running_returns(config, steps)
        np.testing.assert_allclose(state.returns.std, np.std(seen), rtol=1e-4)
        scale = np.std(seen) if scale_rewards else 1.0
        advantage, target = targets_by_hand(config, state.value.params, steps, scale)
        np.testing.assert_allclose(prepared.extras["advantage"], advantage, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(prepared.extras["return"], target, rtol=1e-4, atol=1e-5)
    assert len(seen) == 2 * ROWS * COLUMNS
    v = value_of(state.value.params, recorded(0).obs[0, :, 0])
    chunk = jnp.zeros((COLUMNS, 3, 2, 1))
    judged = jax.jit(made.algorithm.q_values)(state, recorded(0).obs[0, :, 0], chunk)
    np.testing.assert_allclose(
        judged, np.broadcast_to(v[None, :, None] * scale, (1, 4, 3)), rtol=1e-4, atol=1e-5
    )


def test_v_takes_an_adam_step_of_its_own():
    """Half of the halved squared error: the gradient's norm is far below ``grad_clip``, so Adam
    sees it whole.
    """
    made = method(SMALL)
    state, batch = made.minibatch(made.state())
    after, _ = made.update(state, batch, jax.random.key(0))
    target = np.asarray(batch.transitions.extras["return"])
    error = value_of(state.value.params, batch.transitions.obs) - target
    gradient = optax.tree.get(after.value.opt_state, "mu")["Dense_1"]["bias"]
    np.testing.assert_allclose(10 * gradient, [0.5 * error.mean()], rtol=1e-4, atol=1e-6)
    step = after.value.params["Dense_1"]["bias"] - state.value.params["Dense_1"]["bias"]
    np.testing.assert_allclose(step, [-0.01 * np.sign(error.mean())], rtol=1e-3)


def test_a_kl_beyond_its_bound_ends_the_updates_of_the_segment():
    made = method(small(max_kl=0.001))
    state, far = made.minibatch(made.state())
    lp = log_densities(
        made.config,
        "flow",
        state.actor,
        normalize(far.transitions.obs),
        np.asarray(far.transitions.extras["chain"]),
    )[0]
    near = Batch(
        far.transitions._replace(extras={**far.transitions.extras, "log_density": jnp.float32(lp)})
    )
    near_after, metrics = made.update(state, near, jax.random.key(0))
    assert (metrics["approx_kl"] < 1e-6, metrics["stopped"], near_after.stopped) == (True, 0, False)
    assert changed(near_after.actor, state.actor)
    stopped, metrics = made.update(state, far, jax.random.key(0))
    assert metrics["approx_kl"] > 0.001
    assert (stopped.stopped, metrics["stopped"]) == (True, 1)
    assert_same(stopped._replace(stopped=state.stopped), state)
    still, metrics = made.update(stopped, near, jax.random.key(0))
    assert metrics["stopped"] == 1
    assert_same(still, stopped)
    following, _ = made.prepare(still, made.segment)
    assert not following.stopped
    following_after, _ = made.update(following, near, jax.random.key(0))
    assert changed(following_after.actor, following.actor)
    assert changed(following_after.value, following.value)


def test_the_first_segments_train_v_alone():
    made = method(small(value_warmup_segments=2))
    state = made.state()
    for n in range(3):
        state, batch = made.minibatch(state, n % 2)
        for _ in range(2):
            before = state
            state, _ = made.update(before, batch, jax.random.key(0))
            assert changed(
                (state.actor, state.actor_opt_state), (before.actor, before.actor_opt_state)
            ) == (n >= 2)
            assert changed(state.value, before.value)
        assert state.segments == n + 1


@pytest.mark.parametrize(
    "name", ["flow, the last two steps", "diffusion, the last two steps", "flow"]
)
def test_what_is_deployed_takes_the_bases_deterministic_steps_first(name):
    config, family = CASES[name]
    made = method(config, family)
    state, key, obs = made.state(), jax.random.key(4), recorded(0).obs[0, :, 0]
    frozen = STEPS - (config.num_finetuned_steps or STEPS)
    deployed = made.algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer"} | ({"early"} if frozen else set())
    assert deployed["net"] is state.actor["net"]
    if frozen:
        assert deployed["early"] is state.base
    x = noise_of(key, COLUMNS, (2,))
    for i in range(STEPS):
        x = denoised(family, BASE if i < frozen else MOVED, normalize(obs), x, i)[2]
    chunk = made.eval_policy(deployed, obs, key)
    np.testing.assert_allclose(chunk[..., 0], np.clip(x, -1, 1), atol=1e-4)


def test_the_learned_noise_keeps_to_its_range():
    """Where the noise net's output is huge, σ is at an end; a fresh net gives the middle."""
    config = dataclasses.replace(LEARNED, noise_low=0.1, noise_high=0.24)
    made = method(config)
    obs = jax.random.normal(jax.random.key(0), (64, 2))
    spread = {}
    for scale in (0.0, 1.0, 1e4):
        actor = made.state().actor
        noise = {
            **actor["noise"],
            "Dense_1": jax.tree.map(lambda x, scale=scale: scale * x, actor["noise"]["Dense_1"]),
        }
        state = made.state()._replace(actor={**actor, "noise": noise})
        chain = np.asarray(made.act(state, obs, jax.random.key(1))[1]["chain"], np.float64)
        key_noise = noise_of(jax.random.key(1), 64, (STEPS + 1, 2))
        mean = [
            np.clip(denoised("flow", MOVED, normalize(obs), chain[:, i], i)[2], -1, 1)
            for i in range(STEPS)
        ]
        std = (chain[:, 1:] - np.stack(mean, 1)) / np.clip(key_noise[:, 1:], -3, 3)
        spread[scale] = std[np.abs(key_noise[:, 1:]) > 0.1]
        assert spread[scale].min() > 0.1 - 1e-4
        assert spread[scale].max() < 0.24 + 1e-4
    np.testing.assert_allclose(spread[0.0], 0.17, atol=1e-4)
    assert np.ptp(spread[1.0]) > 0.05
    np.testing.assert_allclose(np.ptp(spread[1e4]), 0.14, atol=1e-3)


def learn(made):
    """(state, segment) -> (state, metrics): all updates of a segment, as the compiled loop does
    them.
    """

    def run(state, segment):
        state, segment = made.algorithm.preprocess_segment(state, segment)
        _, batches = made.source.step(None, None, segment, jax.random.key(5), jnp.int32(0))
        keys = jax.random.split(jax.random.key(6), made.source.updates)
        state, metrics = jax.lax.scan(
            lambda s, x: made.algorithm.update(s, *x), state, (batches, keys)
        )
        return state, mesh_lib.all_mean(jax.tree.map(jnp.mean, metrics))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("config", [small(num_finetuned_steps=2), LEARNED], ids=["sde", "learned"])
def test_a_segment_is_the_same_over_two_devices(config, devices):
    """Environments split in two, under the loop's check that parameters stay the same everywhere;
    up to rounding, which Adam magnifies where a gradient is almost 0.
    """
    made = method(config)
    state, segment = jax.tree.map(lambda x: jnp.asarray(x)[None], (made.state(), made.segment))
    (out, rows), run = (P("seed"), P("seed", None, "data")), jax.vmap(learn(made))
    split = jax.shard_map(
        run, mesh=devices(data=2), in_specs=(out, rows), out_specs=out, check_vma=True
    )
    expected, actual = jax.jit(run)(state, segment), jax.jit(split)(state, segment)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual, expected
    )


SWITCHES = {
    "gamma": (SMALL, 0.5, "extras"),
    "gae_lambda": (SMALL, 0.5, "extras"),
    "epochs": (SMALL, 2, "actor_opt_state"),
    "minibatches": (SMALL, 4, "actor_opt_state"),
    "num_finetuned_steps": (SMALL, 2, "actor_opt_state"),
    "denoising_gamma": (SMALL, 0.9, "actor_opt_state"),
    "clip": (SMALL, 0.03, "actor_opt_state"),
    "clip_base": (SMALL, 0.1, "actor_opt_state"),
    "min_std": (SMALL, 0.2, "action"),
    "actor_lr": (SMALL, 0.1, "actor"),
    "value_lr": (SMALL, 0.1, "value"),
    "value_hidden": (SMALL, (8, 8), "value"),
    "grad_clip": (SMALL, 1e-3, "actor_opt_state"),
    "max_kl": (SMALL, 1e-4, "actor"),
    "value_warmup_segments": (SMALL, 1, "actor"),
    "scale_rewards": (SMALL, False, "extras"),
    "noise": (SMALL, "learned", "action"),
    "noise_low": (LEARNED, 0.2, "action"),
    "noise_high": (LEARNED, 0.8, "action"),
    "entropy_weight": (LEARNED, 0.0, "actor_opt_state"),
}


STACKED = (
    "gae_lambda",
    "denoising_gamma",
    "clip",
    "clip_base",
    "actor_lr",
    "value_lr",
    "grad_clip",
)


def outcome(config):
    """What a configuration makes of a segment: actions, what ``preprocess_segment`` adds, and the
    state after all updates.
    """
    made = Method(config, "flow")
    steps = recorded(0)
    act = jax.vmap(lambda obs, key: made.algorithm.act(made.state(BASE), obs, key))
    chunk, extras = act(steps.obs[:, :, 0], jax.random.split(jax.random.key(2), ROWS))
    segment = Segment(steps._replace(action=chunk), extras)
    preprocessed = made.algorithm.preprocess_segment(made.state(), segment)[1].extras
    state, _ = learn(made)(made.state(), segment)
    return {
        "action": chunk,
        "extras": (preprocessed["advantage"], preprocessed["return"]),
        **{name: getattr(state, name) for name in ("actor", "actor_opt_state", "value")},
    }


@functools.cache
def outcome_alone(config):
    """The outcome of one configuration, a program of its own."""
    return jax.jit(lambda: outcome(config))()


@functools.cache
def members():
    """The outcomes of SMALL, {None: …}, and with one number of STACKED changed, {field: …}."""
    return population_outcomes(outcome, SMALL, {field: SWITCHES[field][1] for field in STACKED})


@pytest.mark.slow
@pytest.mark.parametrize("field", SWITCHES)
def test_every_switch_changes_what_it_governs(field):
    """Adam's state holds the raw gradient, which its first step would hide."""
    base, value, part = SWITCHES[field]
    if field in STACKED:
        usual, other = members()[None], members()[field]
    else:
        usual = outcome_alone(base)
        other = outcome_alone(dataclasses.replace(base, **{field: value}))
    usual, other = vector(usual[part]), vector(other[part])
    assert usual.shape != other.shape or np.abs(usual - other).max() > 1e-6


def test_every_switch_has_its_test():
    assert_every_switch_is_tested(SWITCHES, dppo.Config, elsewhere=())


def test_what_the_rollout_needs():
    assert dppo.rollout_needs(dppo.Config(gamma=0.9, epochs=3, minibatches=2)) == {
        "gamma": 0.9,
        "epochs": 3,
        "minibatches": 2,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "gauss"}, "algorithm.noise is 'gauss'; allowed: sde, learned."),
        ({"epochs": 0}, "algorithm.epochs is 0; it must be at least 1 (default: 10)."),
        ({"minibatches": 0}, "algorithm.minibatches is 0; it must be at least 1 (default: 8)."),
        (
            {"num_finetuned_steps": -1},
            "algorithm.num_finetuned_steps is -1; it must be at least 0 (default: 0).",
        ),
        ({"min_std": -0.1}, "algorithm.min_std is -0.1; it must be at least 0 (default: 0.05)."),
        (
            {"value_warmup_segments": -1},
            "algorithm.value_warmup_segments is -1; it must be at least 0 (default: 0).",
        ),
        (
            {"noise_low": 0.0},
            "algorithm.noise_low is 0.0; it must be at least 0.001 (default: 0.1).",
        ),
        ({"noise_high": 0.05}, "algorithm.noise_high is 0.05; it must be at least 0.1."),
        ({"clip": 0.001}, "algorithm.clip is 0.001; it must be at least 0.01."),
        (
            {"num_finetuned_steps": STEPS + 1, "minibatches": 4},
            "algorithm.num_finetuned_steps is 4, more than policy.steps (3).",
        ),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError) as raised:
        Method(dppo.Config(**settings), "flow")
    assert str(raised.value) == message
