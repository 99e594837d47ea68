"""OGPO's update against the paper's formulas in float64 numpy, acting and what is deployed."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.ogpo_by_hand import (
    AFFINE,
    NORMALISER,
    SMALL,
    SPECS,
    STATES,
    ByHand,
    apart,
    make,
    plain,
    training_batch,
    transitions,
)

from gcp_jax.algorithms import ogpo
from gcp_jax.core import flow
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import ValueNet, make_critic_ensemble
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.types import Batch, Transition


@pytest.fixture(scope="module")
def batch():
    return training_batch()


CONFIGS = {
    "OGPO+CA": SMALL,
    "plain": plain(),
    "no clipping": plain(clip=10.0),
    "success term": plain(success_weight=0.7),
    "imitation of the replay": plain(success_weight=0.7, imitation_data="replay"),
    "balanced gradients": plain(success_weight=0.7, balance_gradients=True),
    "shared noise": plain(shared_noise=2),
    "shared noise, value baseline": plain(shared_noise=2, baseline="value"),
    "shared noise, group std": plain(shared_noise=2, group_std=True, conservative=True),
    "fewer states": plain(actor_states=STATES // 2),
    "several target samples": plain(target_samples=3),
    "best next action": plain(critics=2, target_samples=2, target_best_of=3),
    "best next action, chi2": plain(critics=2, chi2=0.5, target_best_of=3),
    "leave one out": plain(baseline="leave_one_out"),
    "value baseline": plain(baseline="value"),
    "conservative value baseline": plain(baseline="value", conservative=True),
    "group std": plain(group_std=True, conservative=True),
    "no negative": plain(no_negative=True),
    "chi2": plain(chi2=0.5),
    "chi2, low ceiling": plain(chi2=5.0, max_reward=0.001, clip=0.05),
    "forward KL": plain(forward_kl=0.3),
    "Cal-QL": plain(critic_warmup_updates=5, calql=0.6),
    "advantage-weighted ratio": plain(extraction="awr", temperature=0.2),
    "advantage-weighted matching": plain(extraction="awfm", temperature=0.2),
    "FPO": plain(extraction="fpo"),
    "back-propagation": plain(extraction="backprop"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_equal_the_papers_formulas(name, batch):
    config = CONFIGS[name]
    algorithm = make(config)
    before = apart(algorithm)
    _, metrics = algorithm.update(before, batch, jax.random.key(0))
    by_hand = ByHand(config, before, batch)
    expected = by_hand.critic() | by_hand.actor()
    assert metrics.keys() == expected.keys() | {"critic_gradient_norm"}
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=2e-4, atol=2e-6, err_msg=key)


def adam_step(loss, params, rate):
    optimizer = optax.adam(rate)
    change, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
    return optax.apply_updates(params, change)


def assert_trees_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


def test_critics_take_an_adam_step_on_the_squared_error_and_their_average_follows(batch):
    config = plain(critic_tau=0.1)
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    y = jnp.asarray(ByHand(config, before, batch).targets(), jnp.float32)
    critics = make_critic_ensemble(3, 2, 2, (8,))

    def loss(critic):
        q = critics.apply(
            {"params": critic}, NORMALISER(batch.transitions.obs), batch.transitions.action[..., 0]
        )
        return jnp.mean((q - y[None]) ** 2)

    stepped = adam_step(loss, before.critic.params, config.critic_lr)
    followed = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new, before.critic.target_params, stepped
    )
    assert_trees_close((after.critic.params, after.critic.target_params), (stepped, followed))


def test_the_value_baseline_regresses_on_the_mean_of_the_critics(batch):
    """V(s) takes an Adam step on (V(s) − mean_m Q̄_m(s, a))², a ~ θ̄, with the critics as this
    update found them.
    """
    config = plain(baseline="value")
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    by_hand = ByHand(config, before, batch)
    action = by_hand.chains(before.actor.target_params, by_hand.obs, 1)[2]
    y = jnp.asarray(
        by_hand.q(before.critic.target_params, by_hand.obs, action).mean((0, 2)), jnp.float32
    )

    def loss(value):
        return jnp.mean(
            (ValueNet((8,)).apply({"params": value}, NORMALISER(batch.transitions.obs)) - y) ** 2
        )

    assert_trees_close(after.value.params, adam_step(loss, before.value.params, config.critic_lr))


def test_averages_follow_at_their_rates(batch):
    config = plain(actor_tau=0.25, slow_tau=0.01, forward_kl=0.1)
    algorithm = make(config)
    before = apart(algorithm)
    after, _ = algorithm.update(before, batch, jax.random.key(0))
    new = after.actor.params["bias"]
    np.testing.assert_allclose(
        after.actor.target_params["bias"],
        0.75 * before.actor.target_params["bias"] + 0.25 * new,
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        after.actor.slow_params["bias"],
        0.99 * before.actor.slow_params["bias"] + 0.01 * new,
        rtol=1e-5,
    )
    assert after.updates == before.updates + 1
    assert not np.array_equal(new, before.actor.params["bias"])


def test_an_advantage_on_which_the_critics_disagree_is_zero(batch):
    """Critics of opposite sign: no chain has a consensus, so nothing moves the actor, to the last
    bit.
    """
    algorithm = make(plain(conservative=True, critic_tau=0.0))
    before = apart(algorithm)
    mirrored = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), before.critic.target_params)
    mirrored["Dense_0"] = jax.tree.map(
        lambda x: jnp.stack([x[0], -x[0], x[0]]), before.critic.target_params["Dense_0"]
    )
    after, metrics = algorithm.update(
        before._replace(critic=before.critic._replace(target_params=mirrored)),
        batch,
        jax.random.key(0),
    )
    assert metrics["advantage_nonzero_fraction"] == 0
    np.testing.assert_array_equal(after.actor.params["bias"], before.actor.params["bias"])


def test_the_warm_up_leaves_the_actor_alone(batch):
    algorithm = make(plain(critic_warmup_updates=2, forward_kl=0.1))
    state = apart(algorithm)
    for n in range(3):
        before = state
        state, _ = algorithm.update(state, batch, jax.random.key(n))
        frozen = (before.actor, state.actor)
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, *frozen)))
        assert same == (n < 2)
        assert not np.array_equal(
            before.critic.params["Dense_0"]["kernel"], state.critic.params["Dense_0"]["kernel"]
        )
    assert state.updates == 3


def test_acting_takes_the_best_of_n_by_the_smaller_of_two_critics():
    """Over many keys exactly the choices of the three pairs of critics appear; before the first
    update, the first chain.
    """
    algorithm = make(SMALL)
    state = apart(algorithm)
    obs = transitions(2).obs[:1]
    by_hand = ByHand(SMALL, state, Batch(transitions(2)))
    candidates = by_hand.chains(state.actor.target_params, by_hand.normalize(obs), SMALL.best_of)[
        2
    ][0]
    q = by_hand.q(state.critic.target_params, by_hand.normalize(obs), candidates[None])[:, 0]
    best = {int(np.argmax(np.minimum(q[i], q[j]))) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert len(best) > 1

    def chosen(state, keys):
        chunks, extras = jax.jit(jax.vmap(lambda key: algorithm.act(state, obs, key)))(keys)
        assert (chunks.shape[1:], extras) == ((1, 2, 1), {})
        distance = np.abs(np.asarray(chunks)[:, 0, None, :, 0] - candidates[None]).max(-1)
        assert distance.min(-1).max() < 1e-6
        return set(distance.argmin(-1))

    keys = jax.random.split(jax.random.key(0), 64)
    assert chosen(state._replace(updates=jnp.int32(1)), keys) == best
    assert chosen(state, keys) == {0}


@pytest.mark.parametrize("scheme", flow.SCHEMES)
def test_the_first_ratio_is_one(scheme, batch):
    """Stored chains are scored as they were sampled, also where the executed action is clipped, so
    θ = θ̄ gives 1 up to the rounding of a mean, measured in the σ of a step, in which sampling and
    scoring differ.
    """
    policy = policy_lib.make_policy(
        PolicyConfig(chunk=2, hidden=(8,), steps=2, scheme=scheme), SPECS
    )
    algorithm = make(SMALL, policy)
    state = algorithm.init(
        jax.random.key(0), {"net": policy.init(jax.random.key(1)), "normalizer": NORMALISER}
    )
    _, metrics = jax.jit(algorithm.update)(state, batch, jax.random.key(2))
    assert metrics["clip_fraction"] == 0
    assert metrics["ratio_deviation"] < np.finfo(np.float32).eps / np.min(
        policy.config.sampler.std(policy.times)
    )
    assert metrics["actor_gradient_norm"] > 0
    chains = policy.sample_chain_points(
        state.actor.target_params, batch.transitions.obs, jax.random.key(3), 4
    )
    assert np.any(np.abs(chains[..., -1, :]) > 1)


def test_cal_ql_is_never_silently_left_out(batch):
    """A source that does not give the returns to go is refused when the update is traced."""
    algorithm = make(plain(calql=1.0, critic_warmup_updates=1))
    without = batch._replace(return_to_go=None)
    with pytest.raises(ValueError, match="algorithm.calql needs returns to go, which the batches"):
        jax.eval_shape(algorithm.update, apart(algorithm), without, jax.random.key(0))


def test_deployed_is_the_policy_that_acts_and_its_normalizer(batch):
    algorithm = make(SMALL)
    state = apart(algorithm)
    exported = algorithm.export(state)
    assert exported.keys() == {"net", "normalizer"}
    assert exported["net"] is state.actor.target_params
    assert exported["normalizer"] is state.normalizer
    assert algorithm.preprocess_segment(state, batch) == (state, batch)


def test_deploying_the_best_of_n_takes_its_critics_along(batch):
    """The chosen of N deterministic samples has the highest value by the smaller of one of the
    pairs of critics.
    """
    algorithm = make(dataclasses.replace(SMALL, deploy_best_of=5))
    state, obs, key = apart(algorithm), batch.transitions.obs, jax.random.key(3)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", "critic"}
    candidates = np.asarray(
        AFFINE.sample_n(state.actor.target_params, NORMALISER(obs), jax.random.split(key)[0], 5)
    )
    by_hand = ByHand(SMALL, state, batch)
    q = by_hand.q(state.critic.target_params, by_hand.normalize(obs), candidates)
    allowed = [np.argmax(np.minimum(q[i], q[j]), -1) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = [candidates[np.arange(STATES), best] for best in allowed]
    chunk = np.asarray(algorithm.eval_policy(deployed, obs, key))[..., 0]
    assert min(np.abs(chunk - each).max() for each in expected) < 1e-5


@pytest.mark.slow
def test_a_two_mode_prior_concentrates_on_the_rewarded_mode(two_modes, optimized):
    """A one-step task: reward 1 for a positive action. The prior takes either mode half of the
    time.
    """
    specs, count = two_modes.policy.specs, 32
    config = ogpo.Config(
        critics=3, critic_hidden=(32, 32), chains=8, actor_states=count, success_weight=0.0,
        actor_lr=1e-3, actor_tau=0.05, critic_lr=3e-3, critic_tau=0.1, clip=0.05,
        gamma=0.99, critic_warmup_updates=0,
    )  # fmt: skip
    algorithm = ogpo.make(config, two_modes.policy, SimpleNamespace(batch_size=count))

    def step(state, key):
        act_key, update_key = jax.random.split(key)
        action = jax.random.uniform(act_key, (count, 1, 1), minval=-1.0)
        zeros, yes = jnp.zeros((count, specs.obs_dim)), jnp.ones(count, bool)
        reward = (action[:, 0, 0] > 0).astype(jnp.float32)
        bandit = Transition(
            zeros, action, jnp.ones((count, 1)), reward, jnp.zeros(count), zeros, yes, ~yes
        )
        return algorithm.update(state, Batch(bandit), update_key)

    state = algorithm.init(jax.random.key(0), two_modes.deployed)
    keys = jax.random.split(jax.random.key(1), 150)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys), compiler_options=optimized)(state)
    greedy = jax.jit(two_modes.policy.eval_policy)
    before, after = (
        np.mean(np.asarray(greedy(deployed, jnp.zeros((4000, 1)), jax.random.key(2))) > 0)
        for deployed in (two_modes.deployed, algorithm.export(state))
    )
    assert abs(before - 0.5) < 0.04
    assert after > 0.95
