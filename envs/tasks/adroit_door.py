"""adroit_door: turn a handle down with the Adroit hand, which undoes the latch, and pull the door open.

The model, the ranges of the door's places and the actions are those of AdroitHandDoor in gymnasium-robotics. What
differs: a control step is 32 ms instead of 10, handle and hinge have no dry friction, and the observation has velocities
and no duplicates. The hand touches the handle, and with the fingers' tips and knuckles the door's leaf. y points from the
arm to the door, z up. The scripted hand flings the door: where it ends open is beyond the arm's reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax.envs.physics.common import add_action_noise, box, initial_state, next_state
from gcp_jax.envs.physics.mjx import Body, at_rest, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import adroit

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.1, "poor": 1.6, "bad": 3.0}  # success 100 %, 59 %, 28 %, 8 %

ARM, HAND = 4, 28  # joints of the arm; of arm and hand together, all actuated
HINGE, LATCH = 28, 29  # joints of the door and of its handle
HINGE_AT = np.array([0.6, 0.0, 0.0])  # metres, from the door's frame
LATCH_AT = np.array([-0.46, 0.0, -0.025])  # metres, the handle's axis from the hinge, door closed
GRIP_AT = np.array([0.15, -0.15, 0.0])  # metres, the handle's site from its axis, handle up
LATCH_DAMPING, HINGE_DAMPING = (
    2.0,
    1.0,
)  # N·m·s/rad; the original: none and 1, and 5 and 2 N·m of dry friction

NEAR = 0.1  # metres of one unit of the palm from the handle in the observation
FAR = 0.3  # metres of one unit of the handle's place
SPEED = 1.0  # m/s or rad/s of one unit of velocity


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; the door's places as their middle and half-widths."""

    open_rad: float = 1.35  # the door's angle that counts as open; it ends at 1.57
    door_mm: tuple[float, float, float] = (-250.0, 300.0, 301.0)
    door_spread_mm: tuple[float, float, float] = (50.0, 50.0, 49.0)
    friction: float = 1.0
    horizon: int = 180  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: arm and hand [28], door, handle; frame [3]: place of the door's frame; palm [3]: its grasp site; metres."""

    body: Body
    frame: Array
    palm: Array


class Plan(NamedTuple):
    """What a demonstrator drew: way [] int32, 0 comes to the handle from above and 1 from its free end; error [3],
    metres, of where it sees the handle."""

    way: Array
    error: Array


_HOOKING = tuple(f"C_{finger}{bone}" for finger in adroit.FINGERS for bone in ("middle", "distal"))
# These touch the handle without friction: a quarter of the solver's rows.
_GUARDING = (*(f"C_{finger}proximal" for finger in adroit.FINGERS), "C_thmiddle", "C_thdistal")


def _edit(friction: float, spec: mujoco.MjSpec, drawn: bool) -> None:
    """Names for what touches, viscous friction, a bar across the palm in place of its box; a frame that renderers move."""
    spec.body("frame").mocap = drawn
    door, latch = spec.body("door"), spec.body("latch")
    door.geoms[0].name = "leaf"
    spec.body("frame").geoms[1].name = "post"
    _, handle, bolt = latch.geoms
    handle.name, bolt.name = "handle", "bolt"
    spec.joint("door_hinge").damping[0], spec.joint("latch").damping[0] = (
        HINGE_DAMPING,
        LATCH_DAMPING,
    )
    capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
    across = dict(fromto=[-0.03, 0.0, 0.08, 0.035, 0.0, 0.08], size=[0.0111, 0.0, 0.0])
    spec.body("palm").add_geom(
        name="bar", type=capsule, mass=0.0, contype=0, conaffinity=0, group=4, **across
    )
    adroit.touching(spec, "handle", ("bar", *_HOOKING), friction)
    adroit.touching(spec, "handle", _GUARDING)
    adroit.touching(spec, "bolt", ("post",))
    adroit.touching(spec, "leaf", adroit.feelers(spec))


def grip(physics: Physics) -> Array:
    """Where the handle's site is, [3] metres."""
    body, frame, _ = physics
    return _grip(frame, body.qpos[HINGE], body.qpos[LATCH])


def _grip(frame: Array, hinge: Array, latch: Array) -> Array:
    """The handle's site [3], metres, with door and handle at these angles."""
    along, out, _ = GRIP_AT
    x = LATCH_AT[0] + along * jnp.cos(latch)
    c, s = jnp.cos(hinge), jnp.sin(hinge)
    return (
        frame
        + HINGE_AT
        + jnp.stack([c * x - s * out, s * x + c * out, LATCH_AT[2] - along * jnp.sin(latch)])
    )


def make(config: Config) -> Env:
    """action [28]: the commands of the position actuators, each range mapped to [-1, 1] as in the original.

    Absolute commands carry no state of their own, and errors of a chunk do not add up.
    """
    models = adroit.models("door", lambda spec, drawn: _edit(config.friction, spec, drawn))
    simulated = simulation(models.simulated, adroit.SUBSTEPS)
    commands = adroit.ranged(models.simulated.actuator_ctrlrange)
    joints = adroit.ranged(models.simulated.jnt_range)
    grasp, framed = models.simulated.site("S_grasp").id, models.simulated.body("frame").id
    places = models.simulated.body_pos.astype(np.float32)

    def sensed(body: Body, frame: Array) -> Physics:
        return Physics(body, frame, simulated.frames(body).site_xpos[grasp])

    def observe(physics: Physics) -> Array:
        """[42]: joints, handle from the middle of its places, palm from handle, velocities of arm, door and handle."""
        body, _, palm = physics
        middle = 0.001 * np.asarray(config.door_mm) + HINGE_AT + LATCH_AT + GRIP_AT
        parts = (
            joints.unit(body.qpos),
            (grip(physics) - middle) / FAR,
            (palm - grip(physics)) / NEAR,
            body.qvel[:ARM] / SPEED,
            body.qvel[HAND:] / SPEED,
        )
        return jnp.concatenate(parts)

    def reset(key: Array) -> State:
        frame_key, state_key = jax.random.split(key)
        frame = box(frame_key, config.door_mm, config.door_spread_mm)
        body = at_rest(jnp.zeros(HAND + 2), nv=HAND + 2)
        physics = sensed(
            body._replace(model={"body_pos": jnp.asarray(places).at[framed].set(frame)}), frame
        )
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, frame, _ = state.physics
        physics = sensed(simulated.step(body, commands.value(action)), frame)
        opened = physics.body.qpos[HINGE] >= config.open_rad
        return next_state(
            state, physics=physics, obs=observe(physics), success=opened, bonus=config.bonus
        )

    specs = EnvSpecs(
        name="adroit_door",
        obs_dim=42,
        action_dim=HAND,
        horizon=config.horizon,
        control_dt=simulated.dt,
        success=f"the door open by {config.open_rad} rad",
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(commands, noise),
        scene=lambda: Scene(models.drawn, _pose, "vil_camera"),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.frame[None]}


# The scripted way: where the palm's site is from the handle's, in the frame of hand and handle, which roll together.
_OFFSET = np.array([0.0, -0.03, -0.012])  # metres
_START = np.array(
    [[0.0, 0.0, 0.09], [0.16, 0.0, 0.0]]
)  # metres from there: above the handle, beside its free end
_BEFORE = np.array(
    [0.0, -0.12, 0.0]
)  # metres from the start, on the way to it: clear of the handle
_FOUND, _LOST = (
    0.045,
    0.08,
)  # metres from its place within which the hand closes, and beyond which it has lost the handle
_CURLED, _HOOKED = (
    12,
    0.8,
)  # the middle finger's second joint, and radians of it beyond which the fingers hold
_PRESS = 0.6  # radians the aim is ahead of the handle
_TURNED = 1.35  # radians the handle is turned
_UNDONE = 1.2  # radians of the handle at which the bolt is free
_AJAR = 0.05  # radians of the door beyond which the bolt stays so
_AHEAD = 0.3  # radians the aim is ahead of the door
_FLUNG = 0.8  # radians of the door at which the hand lets go: the door swings on, to where the arm does not reach
_AWAY = np.array([0.2, -0.2, 0.0])  # metres from the palm: it makes way
_LEVER = 0.5  # metres from the arm's base to the palm's site
_GRAVITY = 15.6  # N·m about the base, of arm and hand held level
_REACH = np.array(
    [0.12, 0.2, 0.15, 0.2]
)  # metres and radians: bounds the pull of each joint of the arm


def _posture(knuckle: float, middle: float, tip: float) -> np.ndarray:
    """Commands [22] of the fingers, radians: all four alike, the thumb below the handle."""
    curl, thumb = (knuckle, middle, tip), (-1.0, 1.1, 0.0, 0.0, -0.6)
    return np.array([0.0, *curl, 0.0, *curl, 0.0, *curl, 0.0, 0.0, *curl, *thumb])


_STRETCHED, _HOOK, _FIST = _posture(0.3, 0.3, 0.1), _posture(0.1, 1.3, 0.2), _posture(0.4, 1.5, 1.0)
_COMING = np.stack([_STRETCHED, _HOOK])  # by way


def demonstrator(commands: adroit.JointRange, noise: float) -> Demonstrator:
    """Comes to the handle from above or from its free end, hooks the fingers round it, turns with it, flings the door.

    Noise misplaces the handle once per episode (10 mm std per unit) and shakes every action (0.02 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        way_key, error_key = jax.random.split(key)
        way = jax.random.randint(way_key, (), 0, 2)
        return Plan(way, 0.01 * noise * jax.random.normal(error_key, (3,)))

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, frame, palm = state.physics
        hinge, latch = body.qpos[HINGE], body.qpos[LATCH]
        offset = plan.error + _rolled(_OFFSET, latch)
        off = palm - grip(state.physics) - offset
        hooked = body.qpos[_CURLED] > _HOOKED
        over = jnp.linalg.norm(off) < jnp.where(hooked, _LOST, _FOUND)
        flung = hinge > _FLUNG
        undone = (latch > _UNDONE) | (hinge > _AJAR)
        turned = jnp.minimum(latch + _PRESS, _TURNED)
        led = _grip(frame, hinge + _AHEAD * undone, turned) + offset
        found = jnp.where(over & hooked, led, palm - off)
        aim = jnp.where(over, found, palm - off + _detour(off, jnp.asarray(_START)[plan.way]))
        arm = _arm(
            body,
            palm,
            jnp.where(flung, palm + _AWAY, aim),
            jnp.where(over & hooked & ~flung, turned, latch),
        )
        fingers = jnp.where(over, _FIST, jnp.asarray(_COMING)[plan.way])
        action = commands.unit(jnp.concatenate([arm, jnp.where(flung, _STRETCHED, fingers)]))
        return add_action_noise(action, key, 0.02 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


def _detour(off: Array, start: Array) -> Array:
    """Where to aim, [3] metres from the hand's place, when it is ``off`` [3] from there: first in front of ``start``
    [3], then at ``start``, and straight from there on."""
    length = jnp.linalg.norm(start)
    along = jnp.dot(off, start) / length
    astray = jnp.linalg.norm(off - along * start / length)
    outside = (along < 0.6 * length) & (off[1] < -0.06)
    return jnp.where(outside, start + _BEFORE, jnp.clip((astray - 0.015) / 0.03, 0.0, 1.0) * start)


def _rolled(offset: np.ndarray, roll: Array) -> Array:
    """``offset`` [3] turned about the y axis by ``roll`` [] radians."""
    x, y, z = offset
    c, s = jnp.cos(roll), jnp.sin(roll)
    return jnp.stack([c * x + s * z, jnp.float32(y), c * z - s * x])


def _arm(body: Body, palm: Array, aim: Array, roll: Array) -> Array:
    """Commands [6] of arm and wrist that bring the ``palm`` [3] to ``aim`` [3], level, and the hand to ``roll`` [] radians.

    It goes sideways by turning.
    """
    q, v = body.qpos[:ARM], body.qvel[:ARM]
    off, none = aim - palm, jnp.zeros(())
    wanted = jnp.stack([q[0] + off[1], q[1] - off[2] / _LEVER, q[2] - off[0] / _LEVER, roll])
    load = jnp.zeros(ARM).at[1].set(-_GRAVITY * jnp.cos(q[1]))
    wrist = jnp.stack([none, -q[1] * jnp.cos(q[3])])
    return jnp.concatenate([adroit.arm_command(wanted, q, v, _REACH, load), wrist])
