"""The registry and the tasks: contracts, quality of the demonstrators, fidelity to C MuJoCo, and no dead setting."""

import dataclasses
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import envs
from envs import physics
from envs.check import CONTRACTS, check_env
from envs.physics import Simulation
from envs.protocol import State
from envs.task import axes

SIMULATED = tuple(name for name in envs.names() if name != "reach")
CLEAN, NOISY = 32, 16  # episodes; the noisy ones also bump into things
REPLAYED = 100  # control steps compared with C MuJoCo

# Allowed distance of MJX from C MuJoCo over an episode, metres and radians
DEVIATION = {
    "hand_cube": 3e-2, "multi_task": 1e-2, "nut_on_peg": 5e-3,
    "peg_insert": 4e-3, "pick_place": 2e-3, "push_t": 1e-3,
}  # fmt: skip

OTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: 1.1 * value + 0.01,
    tuple: lambda value: value[1:] if isinstance(value[0], str) else tuple(1.1 * part + 1.0 for part in value),
    str: lambda value: {"square": "round"}[value],
}


def test_names_are_made():
    assert all(envs.make(name).specs.name == name for name in envs.names())


def test_unknown_name_is_told_with_what_is_allowed():
    with pytest.raises(
        ValueError, match=r"no environment is called 'peg_inset'; did you mean 'peg_insert'\? allowed: .*push_t"
    ):
        envs.make("peg_inset")


def test_unknown_setting_is_told_with_what_is_allowed():
    with pytest.raises(
        ValueError, match=r"'reach' has no setting 'horizn'; did you mean 'horizon'\? allowed: .*tolerance"
    ):
        envs.make("reach", horizn=3)


def test_unknown_peg_is_told_with_what_is_allowed():
    with pytest.raises(ValueError, match="no peg 'hexagonal'; allowed: square, round"):
        envs.make("peg_insert", peg="hexagonal")


@pytest.mark.parametrize("name", envs.names())
def test_contracts(name):
    measured = check_env(envs.make(name), jax.random.key(0), n=4, steps=250)
    assert set(measured) == {"shapes", *CONTRACTS}


def test_axes_of_a_quaternion():
    turn = Rotation.from_euler("xyz", [0.3, -1.1, 2.0])
    forward, upward = axes(jnp.asarray(np.roll(turn.as_quat(), 1), jnp.float32))  # scipy's scalar comes last
    np.testing.assert_allclose(forward, turn.as_matrix()[:, 0], atol=1e-6)
    np.testing.assert_allclose(upward, turn.as_matrix()[:, 2], atol=1e-6)


class Shown(NamedTuple):
    """Demonstrations [T, E], the first ``CLEAN`` without noise: positions after each step, actions, success; and by episode
    [E] the start and the way."""

    start: State
    qpos: np.ndarray
    action: np.ndarray
    success: np.ndarray
    mode: np.ndarray


def _show(env, level):
    """``CLEAN`` episodes without noise, then ``NOISY`` ones at noise ``level``; they go on after success."""

    def episode(key, noise):
        start, demonstrator = env.reset(key), env.demonstrator(noise)
        plan = demonstrator.init(key, start)

        def one(carry, key):
            state, plan = carry
            action, plan = demonstrator.act(plan, state, key)
            new = env.step(state, action)
            return (new, plan), (new.physics.body.qpos, action, new.success)

        (_, plan), seen = jax.lax.scan(one, (start, plan), jax.random.split(key, env.specs.horizon))
        return Shown(start, *seen, demonstrator.mode(plan))

    axes = Shown(start=0, qpos=1, action=1, success=1, mode=0)
    keys = jax.random.split(jax.random.key(7), CLEAN + NOISY)
    return jax.jit(jax.vmap(episode, out_axes=axes))(keys, np.repeat([0.0, level], [CLEAN, NOISY]))


@pytest.fixture(scope="module", params=SIMULATED)
def task(request):
    """The name of a simulated task and demonstrations of it."""
    return request.param, _show(envs.make(request.param), envs.load(request.param).quality["mixed"])


def test_clean_demonstrations_succeed_both_ways(task):
    _, shown = task
    solved, mode = np.asarray(shown.success[:, :CLEAN].any(0)), np.asarray(shown.mode[:CLEAN])
    assert solved.mean() >= 0.95
    assert all(solved[mode == way].mean() >= 0.9 for way in (0, 1))


def test_noise_costs_success(task):
    _, shown = task
    solved = np.asarray(shown.success.any(0))
    assert 0.2 < solved[CLEAN:].mean() < solved[:CLEAN].mean()


def test_fidelity(task):
    """The same actions give the same motion in C MuJoCo and in MJX, clean and in contact, for most episodes."""
    name, shown = task
    with physics.in_c_mujoco():
        reference = envs.make(name)

    def replay(state, actions):
        def one(state, action):
            new = reference.step(state, action)
            return new, new.physics.body.qpos

        return jax.lax.scan(one, state, actions)[1]

    actions = shown.action[:REPLAYED]
    qpos = jax.jit(jax.vmap(replay, in_axes=(0, 1), out_axes=1))(shown.start, actions)
    gaps = np.abs(np.asarray(qpos) - np.asarray(shown.qpos[:REPLAYED])).max((0, 2))
    clean, noisy = (np.quantile(part, (0.5, 0.9)) for part in (gaps[:CLEAN], gaps[CLEAN:]))
    assert clean[0] < DEVIATION[name] and noisy[0] < DEVIATION[name], f"median and 90 %: {clean} clean, {noisy} noisy"


@pytest.mark.parametrize("name", envs.names())
def test_every_setting_changes_something(name, monkeypatch):
    module = importlib.import_module(f"envs.{name}")
    scenes = []
    monkeypatch.setattr(module, "simulation", lambda mjcf: scenes.append(mjcf) or _stub(mjcf), raising=False)
    plain = _fingerprint(module.make(module.Config()), scenes)
    for field in dataclasses.fields(module.Config):
        value = getattr(module.Config(), field.name)
        changed = module.Config(**{field.name: OTHER[type(value)](value)})
        assert _fingerprint(module.make(changed), scenes) != plain, f"{field.name} is dead"


def _stub(mjcf) -> Simulation:
    """Physics that stands still, so that a step traces in no time."""
    model = mujoco.MjModel.from_xml_string(mjcf)
    return Simulation(model, lambda body, control: body._replace(qvel=body.qvel + jnp.sum(control)))


def _fingerprint(env, scenes):
    """Everything an environment is made of, as text: scene, specs, and the programs of reset and step."""
    key = jax.random.key(0)
    state = jax.eval_shape(env.reset, key)
    action = jnp.zeros(env.specs.action_dim)
    programs = [jax.make_jaxpr(env.reset)(key), jax.make_jaxpr(env.step)(state, action)]
    return (str(scenes[-1:]), str(env.specs), *((str(p), str(p.consts)) for p in programs))
