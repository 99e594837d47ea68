"""The registry and the tasks: contracts, quality of the demonstrators, fidelity to C MuJoCo, and no dead setting."""

import dataclasses
import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import envs
from envs.check import CONTRACTS, check_env
from envs.physics import SUBSTEPS, Simulation

SIMULATED = ("peg_insert", "pick_place", "push_t")
CLEAN, NOISY = 32, 16  # episodes; the noisy ones also bump into things
REPLAYED = 100  # control steps compared with C MuJoCo

# Allowed distance of MJX from C MuJoCo over an episode, metres and radians
DEVIATION = {"peg_insert": 4e-3, "pick_place": 2e-3, "push_t": 1e-3}

OTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: 1.1 * value + 0.01,
    tuple: lambda value: tuple(1.1 * part + 1.0 for part in value),
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


class Shown(NamedTuple):
    """Demonstrations [T, E], the first ``CLEAN`` without noise: positions before and after each step, the commanded
    positions of the step, success; and the way [E]."""

    before: np.ndarray
    after: np.ndarray
    target: np.ndarray
    success: np.ndarray
    mode: np.ndarray


def _show(env, level):
    """``CLEAN`` episodes without noise, then ``NOISY`` ones at noise ``level``; they go on after success."""

    def episode(key, noise):
        start, demonstrator = env.reset(key), env.demonstrator(noise)
        plan = demonstrator.init(key, start)

        def one(state, key):
            new = env.step(state, demonstrator.act(plan, state, key)[0])
            return new, (state.physics.body.qpos, new.physics.body.qpos, new.physics.target, new.success)

        _, seen = jax.lax.scan(one, start, jax.random.split(key, env.specs.horizon))
        return Shown(*seen, demonstrator.mode(plan))

    axes = Shown(before=1, after=1, target=1, success=1, mode=0)
    keys = jax.random.split(jax.random.key(7), CLEAN + NOISY)
    return jax.device_get(jax.jit(jax.vmap(episode, out_axes=axes))(keys, np.repeat([0.0, level], [CLEAN, NOISY])))


@pytest.fixture(scope="module", params=SIMULATED)
def task(request):
    """The name of a simulated task, its Env and demonstrations of it."""
    env = envs.make(request.param)
    return request.param, env, _show(env, importlib.import_module(f"envs.{request.param}").QUALITY["mixed"])


def test_clean_demonstrations_succeed_both_ways(task):
    _, _, shown = task
    solved, mode = shown.success[:, :CLEAN].any(0), shown.mode[:CLEAN]
    assert solved.mean() >= 0.95
    assert all(solved[mode == way].mean() >= 0.9 for way in (0, 1))


def test_noise_costs_success(task):
    _, _, shown = task
    solved = shown.success.any(0)
    assert 0.2 < solved[CLEAN:].mean() < solved[:CLEAN].mean()


def test_fidelity(task):
    """The same commands give the same motion in C MuJoCo and in MJX, clean and in contact, for most episodes."""
    name, env, shown = task
    model = env.scene().model
    gaps = []
    for episode in range(CLEAN + NOISY):
        qpos = _replay(model, shown.before[0, episode], _control(model, shown.target[:REPLAYED, episode]))
        gaps.append(np.abs(qpos - shown.after[:REPLAYED, episode]).max())
    assert np.median(gaps[:CLEAN]) < DEVIATION[name], np.sort(gaps[:CLEAN])
    assert np.median(gaps[CLEAN:]) < DEVIATION[name], np.sort(gaps[CLEAN:])


def _control(model, target):
    """Commands [T, nu] from targets [T, ...]; both fingers of a hand get the last one."""
    missing = model.nu - target.shape[1]
    return np.concatenate([target] + missing * [target[:, -1:]], axis=1)


def _replay(model, qpos, controls):
    """Positions [T, nq] that C MuJoCo reaches from ``qpos`` under ``controls`` [T, nu]."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    reached = []
    for control in controls:
        data.ctrl[:] = control
        mujoco.mj_step(model, data, nstep=SUBSTEPS)
        reached.append(data.qpos.copy())
    return np.array(reached)


@pytest.mark.parametrize("name", envs.names())
def test_every_setting_changes_something(name, monkeypatch):
    module = importlib.import_module(f"envs.{name}")
    scenes = []
    monkeypatch.setattr(module, "simulation", lambda mjcf: scenes.append(mjcf) or _stub(), raising=False)
    plain = _fingerprint(module.make(module.Config()), scenes)
    for field in dataclasses.fields(module.Config):
        value = getattr(module.Config(), field.name)
        changed = module.Config(**{field.name: OTHER[type(value)](value)})
        assert _fingerprint(module.make(changed), scenes) != plain, f"{field.name} is dead"


def _stub() -> Simulation:
    """Physics that stands still, so that a step traces in no time."""
    return Simulation(None, lambda body, control: body._replace(qvel=body.qvel + jnp.sum(control)))


def _fingerprint(env, scenes):
    """Everything an environment is made of, as text: scene, specs, and the programs of reset and step."""
    key = jax.random.key(0)
    state = jax.eval_shape(env.reset, key)
    action = jnp.zeros(env.specs.action_dim)
    programs = [jax.make_jaxpr(env.reset)(key), jax.make_jaxpr(env.step)(state, action)]
    return (str(scenes[-1:]), str(env.specs), *((str(p), str(p.consts)) for p in programs))
