"""What tests of several methods share: policies in closed form, transitions, states in the midst of
training, and checks.

Observations have two numbers and an action two, a chunk of two steps of one number each. Whatever
is called ``s`` is a normalized observation, and float64.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import Policy, PolicyConfig
from gcp_jax.learner import population
from gcp_jax.types import Specs, Transition
from helpers.by_hand import assert_one_line, heads, pairs, vector

SPECS = Specs(obs_dim=2, action_dim=1, chunk=2)
NORMALISER = Normalizer(jnp.array([0.5, -0.5]), jnp.array([2.0, 0.5]))


# Policies.


def normalize(obs):
    return (np.asarray(obs, np.float64) - np.asarray(NORMALISER.mean)) / np.asarray(NORMALISER.std)


def affine(bias, obs, noise, scale=0.5):
    """bias + scale·noise + 0.3 s, for jax and for numpy; the noise [..., D] gives the shape."""
    return bias.reshape((1,) * (noise.ndim - 1) + (-1,)) + scale * noise + 0.3 * obs


def wave(shape):
    """Noise that is known: a number follows from its place alone."""
    return 0.9 * np.sin(1.7 * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def matching(params, obs, action, mask, z, t):
    """Per sample: the masked mean of (bias + 0.3 s − a)²."""
    error = (params["bias"][None] + 0.3 * obs - action) ** 2
    return (error * mask).sum(-1) / mask.sum(-1)


def policy_of(sample, imitation_loss=None):
    """A policy that can sample, ``sample(params, obs, z)``, perhaps be cloned, and nothing else."""
    fields = {"sample": sample, "imitation_loss": imitation_loss, "specs": SPECS}
    return Policy(
        **{**dict.fromkeys(Policy._fields), **fields, "config": PolicyConfig(chunk=2, steps=1)}
    )


class SmallFlow(NamedTuple):
    """A flow of three observed numbers and two actions, parameters to deploy, and five
    observations.
    """

    policy: Policy
    deployed: dict
    obs: jax.Array


def small_flow():
    made = policy_lib.make_policy(
        PolicyConfig(chunk=2, hidden=(8, 8), steps=3, sigma=0.2),
        Specs(obs_dim=3, action_dim=2, chunk=2),
    )
    normalizer = Normalizer(jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.5, 1.0]))
    deployed = {"net": jax.jit(made.init)(jax.random.key(0)), "normalizer": normalizer}
    return SmallFlow(
        made, deployed, jnp.asarray(np.random.default_rng(0).standard_normal((5, 3), np.float32))
    )


# Transitions and states.


def transitions(rows=8, seed=0):
    """A third of the rows terminated, a third hit a time limit; those still have a discount."""
    rng = np.random.default_rng(seed)
    obs, following, action = rng.standard_normal((3, rows, 2)).astype(np.float32)
    third = np.arange(rows) % 3
    return Transition(
        obs=jnp.asarray(obs),
        action=jnp.asarray(np.clip(action, -1, 1))[..., None],
        mask=jnp.asarray(
            np.where(np.arange(rows)[:, None] % 4 == 2, [1.0, 0.0], [1.0, 1.0]), jnp.float32
        ),
        reward=jnp.asarray(rng.standard_normal(rows), jnp.float32),
        discount=jnp.asarray(np.where(third == 0, 0.0, 0.9), jnp.float32),
        next_obs=jnp.asarray(following),
        terminated=jnp.asarray(third == 0),
        truncated=jnp.asarray(third == 1),
    )


def returns(data):
    """(reward, discount) in float64."""
    return np.asarray(data.reward, np.float64), np.asarray(data.discount, np.float64)


def pretrained(bias):
    return {"net": {"bias": jnp.asarray(bias, jnp.float32)}, "normalizer": NORMALISER}


def midway(algorithm, bias, step):
    """A state in the midst of training: the average critic differs from the critic."""
    state, other = (algorithm.init(jax.random.key(seed), pretrained(bias)) for seed in (0, 1))
    return state._replace(
        critic=state.critic._replace(target_params=other.critic.params), updates=jnp.int32(step)
    )


def midway_cloning(algorithm, step=1):
    """``midway`` of a method that goes on cloning: the average of the base differs from the base
    too.
    """
    state = midway(algorithm, [0.1, -0.2], step)
    return state._replace(base=state.base._replace(target_params={"bias": jnp.array([-0.05, 0.3])}))


# Acting.


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def best(q, action):
    """The action [B, N, D] of the highest value [B, N]."""
    return np.take_along_axis(action, np.argmax(q, -1)[:, None, None], 1)[:, 0]


def assert_acts_and_deploys(algorithm, state, obs, expected, parts):
    """``act`` and the deployed policy, which is the averaged base and ``parts``, both give
    ``expected`` [B, D].
    """
    chunk, extras = algorithm.act(state, obs, jax.random.key(0))
    assert extras == {}
    assert_close(chunk[..., 0], expected)
    deployed = algorithm.export(state)
    assert deployed.keys() == {"net", "normalizer", *parts}
    assert deployed["net"] is state.base.target_params
    assert_close(algorithm.eval_policy(deployed, obs, jax.random.key(1))[..., 0], expected)
    assert algorithm.preprocess_segment(state, obs) == (state, obs)


def assert_best_of_random_pairs(algorithm, state, obs, action, q):
    """``act`` and the deployed policy give the best of ``action`` [B, N, D] by a pair of heads q
    [M, B, N]: each pair.
    """
    expected = np.stack([best(pair, action) for pair in pairs(q)])
    keys, deployed = jax.random.split(jax.random.key(0), 64), algorithm.export(state)
    for choose in (
        lambda key: algorithm.act(state, obs, key)[0],
        lambda key: algorithm.eval_policy(deployed, obs, key),
    ):
        chunks = np.asarray(jax.jit(jax.vmap(choose))(keys))[..., 0]
        distance = np.abs(chunks[:, None] - expected[None]).max((-1, -2))
        assert distance.min(-1).max() < 1e-5
        assert (
            len(np.unique(chunks.round(4), axis=0)) == len(np.unique(expected.round(4), axis=0)) > 1
        )


def assert_first_acts_until_warm(algorithm, warmup, options):
    """``options(state, s)`` are the actions [B, N, D] and what they are worth [B, N]: the first
    acts, then the best.
    """
    obs = transitions(seed=2).obs
    for step in (0, warmup, warmup + 1):
        state = midway_cloning(algorithm, step)
        action, worth = options(state, normalize(obs))
        expected = best(worth, action) if step > warmup else action[:, 0]
        chunk, _ = algorithm.act(state, obs, jax.random.key(0))
        assert_close(chunk[..., 0], expected)


# Learning.


def poolings(q, aggregate):
    """What ``critic.pooled`` may make of the heads q [M, ...]: their mean, or the smaller of any
    two.
    """
    return [q.mean(0)] if aggregate == "mean" else pairs(q)


def assert_pooled(found, q, aggregate, scale=1.0, offset=0.0, atol=2e-4):
    """``found`` is offset + scale·q with one pooling of the heads for the whole batch."""
    wanted = [offset + scale * each for each in poolings(q, aggregate)]
    assert min(np.abs(np.asarray(found) - each).max() for each in wanted) < atol


def regressed(call, before, after, data, action=None):
    """The targets of the one call of ``critic.td_step`` that made the critics ``after`` of those
    ``before``.
    """
    (trained, obs, judged, y), (learned, _) = call
    assert trained is before.critic
    np.testing.assert_allclose(obs, normalize(data.obs), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(judged, data.action[..., 0] if action is None else action)
    assert after.critic is learned
    return y


def assert_only_time_limits_bootstrap(y, data):
    """Among the rows that ended."""
    gained = np.abs(np.asarray(y) - returns(data)[0])
    assert gained[np.asarray(data.terminated)].max() == 0
    assert gained[np.asarray(data.truncated)].min() > 1e-4


def cloned(call, before, data):
    """The base that the one call of ``imitation.improve`` made of the base ``before``, on the
    replay.
    """
    (base, obs, given, _), (improved, _) = call
    assert (base, given) == (before.base, data)
    np.testing.assert_allclose(obs, normalize(data.obs), rtol=1e-5, atol=1e-6)
    return improved


def assert_metrics(metrics, expected, others):
    """The values of those ``expected``, and the names of all."""
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    assert metrics.keys() == expected.keys() | others


def assert_each_learns_in_its_time(
    update, state, batch, learns, waiting, always=("critic",), never=()
):
    """Update by update, the parts ``waiting`` change just where ``learns`` says so, others always
    or never.
    """
    for n, expected in enumerate(learns):
        before = state
        state, _ = update(state, batch, jax.random.key(n))
        for name in waiting:
            same = jax.tree.all(
                jax.tree.map(np.array_equal, getattr(before, name), getattr(state, name))
            )
            assert same != expected, (name, n)
        for name in always:
            change = vector(getattr(before, name).params) - vector(getattr(state, name).params)
            assert np.abs(change).max() > 1e-4, (name, n)
        for name in never:
            jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(state, name))
    assert state.updates == len(learns)


def assert_two_devices_learn_as_one(algorithm, state, batch, devices, opts):
    """The gradients of an update, from the memories of the optimizers ``opts(state)``, do not
    depend on the split.
    """
    key = jax.random.key(4)

    def update(state, batch):
        return [memory(opt) for opt in opts(algorithm.update(state, batch, key)[0])]

    spread = jax.shard_map(
        update, mesh=devices(data=2), in_specs=(P(), P("data")), out_specs=P(), check_vma=True
    )
    one, two = vector(update(state, batch)), vector(jax.jit(spread)(state, batch))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=2e-5)


def assert_diagnostics_see_the_averaged_critics(algorithm, state, obs):
    """Three of them, on five chunks for each observation."""
    chunk = np.random.default_rng(3).standard_normal((len(obs), 5, 2, 1)).astype(np.float32)
    found = algorithm.q_values(state, obs, jnp.asarray(chunk))
    assert found.shape == (3, len(obs), 5)
    assert_close(found, heads(state.critic.target_params, normalize(obs)[:, None], chunk[..., 0]))


# Configuration: the parts of a state and the switches, {field: (another value, the part that shows
# it)}.


def memory(opt):
    """Adam's first moment: it holds the raw gradient, which its first step would hide."""
    return optax.tree.get(opt, "mu")


CRITIC_PARTS = {
    "critic": lambda state: state.critic.params,
    "critic gradient": lambda state: memory(state.critic.opt_state),
    "average": lambda state: state.critic.target_params,
}
BASE_PARTS = {
    "base": lambda state: state.base.params,
    "base average": lambda state: state.base.target_params,
}


def soft_parts(name):
    """The parts of the soft actor ``state.<name>``."""
    return {
        name: lambda state: getattr(state, name).params,
        f"{name} gradient": lambda state: memory(getattr(state, name).opt_state),
        "temperature": lambda state: getattr(state, name).log_alpha,
        "temperature gradient": lambda state: memory(getattr(state, name).alpha_opt_state),
    }


CRITIC_SWITCHES = {
    "critic_lr": (0.1, "critic"),
    "critic_tau": (0.5, "average"),
    "grad_clip": (1e-3, "critic gradient"),
}
BASE_SWITCHES = {"base_lr": (0.1, "base"), "base_tau": (0.5, "base average")}
TEMPERATURE_SWITCHES = {
    "target_entropy": (-1.0, "temperature gradient"),
    "temperature_lr": (0.1, "temperature"),
}
SOFT_SWITCHES = {
    **CRITIC_SWITCHES,
    **TEMPERATURE_SWITCHES,
    "critics": (4, "actor gradient"),
    "critic_hidden": ((5,), "actor gradient"),
    "critic_warmup_updates": (10, "actor"),
    "aggregate": ("min", "critic gradient"),
    "actor_hidden": ((5,), "critic gradient"),
    "actor_lr": (0.1, "actor"),
    "temperature": (1.0, "critic gradient"),
}
BAD_CRITICS = (
    ({"critics": 1}, "algorithm.critics is 1; it must be at least 2"),
    ({"aggregate": "max"}, "algorithm.aggregate is 'max'; allowed: mean, min"),
)
BAD_WARMUP = (
    {"critic_warmup_updates": -1},
    "algorithm.critic_warmup_updates is -1; it must be at least 0",
)
BAD_SOFT = (
    ({"temperature": -1.0}, "algorithm.temperature is -1.0; it must be positive"),
    ({"target_entropy": 1.0}, "algorithm.target_entropy is 1.0; it must be below 0.69"),
)


STACKED = {
    "actor_lr",
    "alpha",
    "base_lr",
    "base_tau",
    "critic_lr",
    "critic_tau",
    "critic_warmup_updates",
    "edit_scale",
    "grad_clip",
    "noise_bound",
    "scale",
    "target_entropy",
    "temperature_lr",
}
"""Numbers that a population can vary in one program."""


class Outcomes:
    """What an update makes of one part of the state, as one vector, for many configurations.

    Configurations that differ from ``base`` in one of the numbers STACKED are the members of one
    compiled population; each of the others is a program of its own.
    """

    def __init__(self, make, start, batch, parts, *, base, switches):
        self.make = make
        self.start = start
        self.batch = batch
        self.parts = parts
        self.base = base
        self.stacked = {field: switches[field][0] for field in switches if field in STACKED}
        self.found_alone = {}

    def update(self, config):
        algorithm = self.make(config)
        return algorithm.update(self.start(algorithm), self.batch, jax.random.key(0))[0]

    @functools.cached_property
    def members(self):
        """The updated states of ``base``, {None: …}, and with one number changed, {field: …}."""
        return population_outcomes(self.update, self.base, self.stacked)

    def alone(self, config):
        """The updated state of one configuration."""
        if config not in self.found_alone:
            algorithm = self.make(config)
            update = jax.jit(algorithm.update)
            state, _ = update(self.start(algorithm), self.batch, jax.random.key(0))
            self.found_alone[config] = state
        return self.found_alone[config]

    def of_switch(self, config, field, value):
        """The updated states of ``config`` with its own and with another value of ``field``."""
        if config == self.base and self.stacked.get(field) == value:
            return self.members[None], self.members[field]
        return self.alone(config), self.alone(dataclasses.replace(config, **{field: value}))

    def assert_switch_governs(self, config, field, value, part, resizes=False):
        """Another value of ``field`` makes another ``part``; only one that ``resizes`` may give it
        another size.
        """
        one, two = (
            vector(self.parts[part](state)) for state in self.of_switch(config, field, value)
        )
        assert (resizes and one.shape != two.shape) or np.abs(one - two).max() > 1e-6


def population_outcomes(function, config, changes):
    """Results of ``function(config)``, of ``config`` and of it with one number changed.

    They are computed by one program, as the members of a population are.

    Args:
      function: of a configuration, gives a tree of arrays.
      config: a method's configuration.
      changes: {field: another number}.

    Returns:
      {None: the result of ``config``, field: the result with that number changed}.
    """
    members = (None, *changes)
    values = {
        field: tuple(value if member == field else getattr(config, field) for member in members)
        for field, value in changes.items()
    }
    run = SimpleNamespace(population=values, algorithm=SimpleNamespace(settings=config))
    arrays = {
        field: np.asarray(numbers, population.DTYPES[type(getattr(config, field))])
        for field, numbers in values.items()
    }

    def of_member(member):
        return function(population.config_of_member(run, member))

    results = jax.device_get(jax.jit(jax.vmap(of_member))(arrays))
    leaves, structure = jax.tree.flatten(results)
    return {
        member: structure.unflatten([leaf[index] for leaf in leaves])
        for index, member in enumerate(members)
    }


def assert_every_switch_is_tested(switches, config, elsewhere=("gamma",)):
    """Every field of a method's configuration is a switch with a test.

    Fields named ``elsewhere`` have other tests: gamma acts in the replay, which folds it into the
    transitions.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    untested = sorted(fields - switches.keys() - set(elsewhere))
    assert not untested, (
        f"SWITCHES in this file lacks {', '.join(untested)}: add a row with another value of the "
        "field and the part of the state that this value changes"
    )
    unknown = sorted(switches.keys() - fields)
    assert not unknown, f"SWITCHES in this file has {', '.join(unknown)}, no field of {config}"


def assert_refused(config, settings, message):
    """In one line."""
    with pytest.raises(ValueError, match=message) as error:
        config(**settings)
    assert_one_line(error)
