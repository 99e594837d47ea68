"""The registry and the tasks: contracts, demonstrators, fidelity to C MuJoCo, no dead setting."""

import dataclasses
import functools
import importlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gcp_jax import envs
from gcp_jax.envs.check import ATOL, CONTRACTS, check_env
from gcp_jax.envs.physics import mjx
from gcp_jax.envs.physics.common import quaternion_axes
from gcp_jax.envs.physics.mjx import Simulation
from gcp_jax.envs.probe import compiled
from gcp_jax.envs.protocol import State
from gcp_jax.envs.robots import ur5e
from gcp_jax.envs.shapes import check_modes

SIMULATED = tuple(name for name in envs.names() if name != "reach")
CLEAN, NOISY = 32, 16  # episodes; the noisy ones also bump into things
SHOWN = CLEAN + NOISY  # as many as the contracts are checked on
EVERYDAY = ("reach",)  # tasks whose contracts are checked every day: no physics to compile
REPLAYED = 100  # control steps compared with C MuJoCo

# Allowed median distance of MJX from C MuJoCo over 100 steps of an episode, metres and radians:
# (clean episodes, noisy ones). In noisy episodes objects tumble, and float32 parts from float64.
DEVIATION = {
    "adroit_door": (1e-2, 0.5),
    "adroit_relocate": (3e-2, 1.0),
    "hand_cube": (3e-2, 5e-2),
    "handover": (1e-3, 3e-2),
    "multi_task": (2e-2, 3e-2),
    "nut_on_peg": (3e-3, 3e-2),
    "peg_insert": (1e-3, 5e-3),
    "pick_place": (1e-3, 5e-2),
    "push_t": (1e-3, 1e-3),
    "ur5e_insert": (5e-3, 3e-2),
    "ur5e_pick_place": (1e-3, 3e-2),
}

OPTIMIZED = {"xla_backend_optimization_level": 1}  # hundreds of steps of many contacts

OTHER = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: 1.1 * value + 0.01,
    tuple: lambda value: (
        value[1:] if isinstance(value[0], str) else tuple(1.1 * part + 1.0 for part in value)
    ),
    str: lambda value: {"square": "round"}[value],
}


@functools.cache
def made(name):
    """A task and its programs: contracts and demonstrations share one compile."""
    env = envs.make(name)
    return env, compiled(env, env.specs.horizon + 20, OPTIMIZED if name in SIMULATED else None)


def test_names_are_made():
    assert all(envs.make(name).specs.name == name for name in envs.names())


def test_an_unknown_name_is_refused_with_what_is_allowed():
    with pytest.raises(
        ValueError,
        match=r"no environment is called 'peg_inset'; "
        r"did you mean 'peg_insert'\? allowed: .*push_t",
    ):
        envs.make("peg_inset")


def test_an_unknown_setting_is_refused_with_what_is_allowed():
    with pytest.raises(
        ValueError,
        match=r"'reach' has no setting 'horizn'; did you mean 'horizon'\? allowed: .*tolerance",
    ):
        envs.make("reach", horizn=3)


@pytest.mark.parametrize("name", [*envs.names(), "brax:ant"])
def test_no_setting_takes_what_is_no_number_of_its_kind(name):
    defaults = {
        field: value
        for field, value in envs.settings(name).items()
        if field not in ("name", "module", "randomize")
    }
    for field, default in defaults.items():
        numbers = default if isinstance(default, tuple) else (default,)
        if any(isinstance(number, str) for number in numbers):
            continue
        bad = (np.nan,) * len(numbers) if isinstance(default, tuple) else np.nan
        with pytest.raises(ValueError, match=rf"env.{field} is \(?nan.*; it must be"):
            envs.make(name, **{field: bad})
    with pytest.raises(ValueError, match="env.horizon is 0; it must be at least 1"):
        envs.make(name, horizon=0)


@pytest.mark.parametrize(
    ("name", "field", "value", "allowed"),
    [
        ("peg_insert", "clearance_mm", -1.0, "at least 0"),
        ("peg_insert", "hole_noise_mm", -1.0, "at least 0"),
        ("peg_insert", "start_spread_mm", (10.0, -1.0, 6.0), "at least 0"),
        ("push_t", "tolerance_mm", 0.0, "positive"),
        ("ur5e_insert", "grip_friction", 0.0, "positive"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_what_is_allowed(name, field, value, allowed):
    with pytest.raises(ValueError, match=rf"env.{field} is .*; it must be {allowed}"):
        envs.make(name, **{field: value})


def test_an_unknown_peg_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="env.peg is 'hexagonal'; allowed: square, round"):
        envs.make("peg_insert", peg="hexagonal")


def _slow_unless_everyday(name):
    return pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow)


@pytest.mark.parametrize("name", [_slow_unless_everyday(name) for name in envs.names()])
def test_contracts(name, monkeypatch):
    """Of simulated tasks without "demonstrator", whose episodes the tests of ``task`` run."""
    if name in SIMULATED:
        monkeypatch.delitem(CONTRACTS, "demonstrator")
    env, programs = made(name)
    measured = check_env(
        env, jax.random.key(0), n=SHOWN, steps=programs.max_steps, programs=programs
    )
    assert set(measured) == {"shapes", *CONTRACTS}


def test_axes_of_a_quaternion():
    turn = Rotation.from_euler("xyz", [0.3, -1.1, 2.0])
    forward, upward = quaternion_axes(
        jnp.asarray(np.roll(turn.as_quat(), 1), jnp.float32)
    )  # scipy's scalar comes last
    np.testing.assert_allclose(forward, turn.as_matrix()[:, 0], atol=1e-6)
    np.testing.assert_allclose(upward, turn.as_matrix()[:, 2], atol=1e-6)


ARM = """
<mujoco><worldbody><body name="upper" pos="0 0 .1">
  <joint name="shoulder" axis="0 1 0"/>
  <geom name="bone" type="capsule" fromto="0 0 0 .2 0 0" size=".02"/>
  <body name="lower" pos=".2 0 0">
   <joint name="elbow" axis="0 0 1"/><geom type="sphere" size=".03" pos=".1 0 0"/>
    <site name="tip" pos=".15 0 0" euler="30 0 0"/></body></body></worldbody></mujoco>"""


def test_forward_kinematics_equals_c_mujoco():
    reference = mjx.simulation(ARM, substeps=2, backend="mujoco")
    simulated = mjx.simulation(ARM, substeps=2)
    body = mjx.at_rest(jnp.array([0.4, -1.1]), nv=2)
    frames = jax.jit(simulated.frames)(body)
    for name, found, expected in zip(
        mjx.Frames._fields, frames, reference.frames(body), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    assert simulated.dt == reference.dt == pytest.approx(0.004)
    np.testing.assert_allclose(
        frames.xanchor[1], [0.2 * np.cos(0.4), 0.0, 0.1 - 0.2 * np.sin(0.4)], atol=1e-6
    )


def test_any_nesting_of_vmaps_is_one_batch_that_is_batched_once():
    """Loops whose carry begins unbatched, values shared by all environments, and empty arrays."""
    traced = []

    def function(x, shared):
        traced.append(x.shape)
        return {"sum": jnp.cumsum(x * shared["by"]), "none": shared["none"]}

    one = mjx.one_batch(function)
    x, shared = (
        jnp.arange(24.0).reshape(2, 4, 3),
        {"by": jnp.array([1.0, 2.0, 3.0]), "none": jnp.zeros((0, 2))},
    )

    def loop(x):
        return jax.lax.fori_loop(
            0, 2, lambda _, total: total + one(x + total, shared)["sum"], jnp.zeros(3)
        )

    def by_hand(x):
        by = np.asarray(shared["by"])
        first = np.cumsum(x * by, -1)
        return first + np.cumsum((x + first) * by, -1)

    jaxpr = jax.make_jaxpr(jax.vmap(jax.vmap(loop)))(x)
    before = list(traced)
    jax.make_jaxpr(jax.vmap(jax.vmap(jax.vmap(loop))))(jnp.stack([x, x]))
    assert traced == before and set(traced) == {(3,)}
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(loop)))(x), by_hand(np.asarray(x)))
    assert "f32[8,3] = cumsum" in str(jaxpr)
    np.testing.assert_allclose(loop(x[0, 1]), by_hand(np.asarray(x[0, 1])))


class Shown(NamedTuple):
    """Demonstrations [T, E], the first ``CLEAN`` without noise: positions after each step, actions,
    success; and by episode
    [E] the start and the way."""

    start: State
    qpos: np.ndarray
    action: np.ndarray
    success: np.ndarray
    mode: np.ndarray


def _show(name, level):
    """``CLEAN`` episodes without noise, then ``NOISY`` at noise ``level``, beyond success."""
    env, programs = made(name)
    noise = np.repeat(np.float32([0.0, level]), [CLEAN, NOISY])
    plan_key, *keys = jax.random.split(jax.random.key(7), 1 + env.specs.horizon)

    @jax.jit
    @jax.vmap
    def begin(noise, key, state):
        plan = env.demonstrator(noise).init(key, state)
        return plan, env.demonstrator(noise).mode(plan)

    @jax.jit
    @jax.vmap
    def act(noise, plan, state, key):
        running = state._replace(terminated=jnp.zeros((), bool), truncated=jnp.zeros((), bool))
        return *env.demonstrator(noise).act(plan, state, key), running

    start = state = programs.reset(jax.random.split(jax.random.key(8), SHOWN))
    plan, mode = begin(noise, jax.random.split(plan_key, SHOWN), state)
    seen = []
    for key in keys:
        action, plan, state = act(noise, plan, state, jax.random.split(key, SHOWN))
        state, record = programs.step(state, action)
        seen.append((state.physics.body.qpos, action, record.success))
    return Shown(start, *(np.stack(part) for part in zip(*jax.device_get(seen), strict=True)), mode)


@pytest.fixture(scope="module", params=[_slow_unless_everyday(name) for name in SIMULATED])
def task(request):
    """The name of a simulated task and demonstrations of it."""
    name = request.param
    return name, _show(name, envs.load(name).quality["mixed"])


def test_clean_demonstrations_succeed_both_ways(task):
    name, shown = task
    check_modes(shown.mode, made(name)[0].demonstrator(0.0).modes)
    solved, mode = np.asarray(shown.success[:, :CLEAN].any(0)), np.asarray(shown.mode[:CLEAN])
    assert solved.mean() >= 0.95
    assert all(solved[mode == way].mean() >= 0.9 for way in (0, 1))
    assert np.abs(shown.action).max() <= 1.0 + ATOL


def test_noise_costs_success(task):
    _, shown = task
    solved = np.asarray(shown.success.any(0))
    assert 0.2 < solved[CLEAN:].mean() < solved[:CLEAN].mean()


def test_fidelity(task):
    """The same actions give the same motion in C MuJoCo and in MJX, for most episodes."""
    name, shown = task
    reference = envs.make(name, backend="mujoco")

    def replay(state, actions):
        def one(state, action):
            new = reference.step(state, action)
            return new, new.physics.body.qpos

        return jax.lax.scan(one, state, actions)[1]

    actions = shown.action[:REPLAYED]
    qpos = jax.jit(jax.vmap(replay, in_axes=(0, 1), out_axes=1))(shown.start, actions)
    gaps = np.abs(np.asarray(qpos) - np.asarray(shown.qpos[:REPLAYED])).max((0, 2))
    clean, noisy = np.median(gaps[:CLEAN]), np.median(gaps[CLEAN:])
    assert clean < DEVIATION[name][0] and noisy < DEVIATION[name][1], (
        f"{clean} clean, {noisy} noisy"
    )


@pytest.mark.parametrize("name", envs.names())
def test_every_setting_changes_something(name, monkeypatch):
    """Compare scene and specs; trace the programs only if those are equal."""
    module = importlib.import_module(f"gcp_jax.envs.tasks.{name}")
    scenes = []

    def stub(source, substeps=mjx.SUBSTEPS, backend="mjx"):
        scenes.append(_text(source))
        return _stub(source, substeps)

    for simulating in (module, ur5e):
        monkeypatch.setattr(simulating, "simulation", stub, raising=False)
    plain = module.make(module.Config())
    plain_scene = scenes[-1:]
    plain_programs = None
    for field in dataclasses.fields(module.Config):
        value = getattr(module.Config(), field.name)
        changed = module.make(module.Config(**{field.name: OTHER[type(value)](value)}))
        if scenes[-1:] != plain_scene or str(changed.specs) != str(plain.specs):
            continue
        plain_programs = plain_programs or _programs(plain)
        assert _programs(changed) != plain_programs, f"{field.name} is dead"


def _text(source):
    """A scene as something to compare: its MJCF, or the bytes of its model."""
    if isinstance(source, str):
        return source
    buffer = np.empty(mujoco.mj_sizeModel(source), np.uint8)
    mujoco.mj_saveModel(source, None, buffer)
    return buffer.tobytes()


def _stub(source, substeps) -> Simulation:
    """Physics that stands still, so that a step traces in no time."""
    model = mujoco.MjModel.from_xml_string(source) if isinstance(source, str) else source
    simulated = mjx.simulation(model, substeps, backend="mujoco")
    return simulated._replace(
        step=lambda body, control: body._replace(qvel=body.qvel + jnp.sum(control))
    )


def _programs(env):
    """The programs of reset, step and what a demonstrator draws, as something to compare."""
    key = jax.random.key(0)
    state = jax.eval_shape(env.reset, key)
    action = jnp.zeros(env.specs.action_dim)
    programs = [
        jax.make_jaxpr(env.reset)(key),
        jax.make_jaxpr(env.step)(state, action),
        jax.make_jaxpr(env.demonstrator(1.0).init)(key, state),
    ]
    texts = [re.sub("0x[0-9a-f]+", "", str(program)) for program in programs]  # no addresses
    return texts + [str(program.consts) for program in programs]
