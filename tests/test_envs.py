"""The registry and the tasks: contracts, quality of the demonstrators, fidelity to C MuJoCo, and no dead setting."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import envs
from envs.check import CONTRACTS, check_env
from envs.physics import SUBSTEPS, Simulation

SIMULATED = ("peg_insert", "pick_place", "push_t")
EPISODES = 48
REPLAYED = 100  # control steps compared with C MuJoCo

# Allowed distance of MJX from C MuJoCo while a clean demonstration runs, metres and radians; see ``fidelity``.
DEVIATION = {"peg_insert": 2e-3, "pick_place": 5e-3, "push_t": 5e-3}

OTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: 1.1 * value + 0.01,
    tuple: lambda value: tuple(1.1 * part + 1.0 for part in value),
    str: lambda value: {"square": "round"}[value],
}


def test_names_are_made():
    assert [envs.make(name).specs.name for name in ("reach",)] == ["reach"]
    assert envs.names() == tuple(sorted(envs.names()))


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


def _episodes(env):
    """Clean demonstrations [T, E]: Body before each step, commanded positions after it, success, mode."""
    demonstrator = env.demonstrator(0.0)

    def episode(key):
        state = env.reset(key)
        plan = demonstrator.init(key, state)

        def one(state, key):
            action, _ = demonstrator.act(plan, state, key)
            new = env.step(state, action)
            return new, (state.physics.body, new.physics.target, new.success, new)

        return *jax.lax.scan(one, state, jax.random.split(key, env.specs.horizon))[1], demonstrator.mode(plan)

    return jax.device_get(
        jax.jit(jax.vmap(episode, out_axes=(1, 1, 1, 1, 0)))(jax.random.split(jax.random.key(7), EPISODES))
    )


@pytest.fixture(scope="module", params=SIMULATED)
def shown(request):
    """A simulated task's name, its Env and its clean demonstrations."""
    env = envs.make(request.param)
    return request.param, env, _episodes(env)


def test_clean_demonstrations_succeed_both_ways(shown):
    _, _, (_, _, success, _, mode) = shown
    solved = success.any(0)
    assert solved.mean() >= 0.95
    assert all(solved[mode == way].mean() >= 0.9 for way in (0, 1))


def test_fidelity(shown):
    """The same commands in C MuJoCo and MJX: the middle episode of three stays within the deviation until success."""
    name, env, (body, target, success, *_) = shown
    model = env.scene().model
    gaps = []
    for episode in range(3):
        qpos = _replay(model, body.qpos[0, episode], _control(model, target[:REPLAYED, episode]))
        until = int(np.argmax(success[:, episode]))
        gaps.append(np.abs(qpos[:until] - body.qpos[1 : until + 1, episode]).max())
    assert np.median(gaps) < DEVIATION[name], gaps


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
