"""adroit_door: turn a handle down with the Adroit hand and pull the door open.

The model, the ranges of the door's places and the actions are those of AdroitHandDoor in
gymnasium-robotics. Differences: a control step is 32 ms instead of 10, handle and hinge have no dry
friction, and the observation has velocities and no duplicates. The hand touches the handle, and
with the fingers' tips and knuckles the door's leaf. y points from the arm to the door, z up. The
scripted hand flings the door: the place where it ends open is beyond the arm's reach.

Observation [42], all of order one:

| index | content | unit |
|---|---|---|
| 0–29 | joints of arm, hand, door and handle, their ranges mapped to [-1, 1] | 1 |
| 30–32 | handle from the middle of its places | 300 mm |
| 33–35 | palm from handle | 100 mm |
| 36–39 | velocities of the arm's joints | 1 m/s, 1 rad/s |
| 40–41 | velocities of door and handle | 1 rad/s |

Action [28]: the commands of the position actuators, each range mapped to [-1, 1] as in the
original. Absolute commands carry no state of their own, and errors of a chunk do not add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from gcp_jax import config_fields
from gcp_jax.config_fields import FINITE, NON_NEGATIVE, POSITIVE, POSITIVE_INT, field
from gcp_jax.envs.physics.common import add_action_noise, initial_state, next_state, sample_box_mm
from gcp_jax.envs.physics.mjx import Backend, Body, at_rest, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State
from gcp_jax.envs.robots import adroit
from gcp_jax.envs.robots.adroit import JointRange

Array = jax.Array

QUALITY = {"expert": 0.0, "mixed": 1.1, "poor": 1.6, "bad": 3.0}  # success 100 %, 59 %, 28 %, 8 %

ARM, HAND = 4, 28  # joints of the arm; of arm and hand together, all actuated
HINGE, LATCH = 28, 29  # joints of the door and of its handle
HINGE_AT = np.array([0.6, 0.0, 0.0])  # metres, from the door's frame
LATCH_AT = np.array([-0.46, 0.0, -0.025])  # metres, the handle's axis from the hinge, door closed
GRIP_AT = np.array([0.15, -0.15, 0.0])  # metres, the handle's site from its axis, handle up
LATCH_DAMPING = 2.0  # N·m·s/rad; the original: none, and 5 N·m of dry friction
HINGE_DAMPING = 1.0  # N·m·s/rad; the original: 1, and 2 N·m of dry friction

NEAR = 0.1  # metres of one unit of the palm from the handle in the observation
FAR = 0.3  # metres of one unit of the handle's place
SPEED = 1.0  # m/s or rad/s of one unit of velocity


@dataclass(frozen=True)
class Config:
    """The door's places are a box, given by its middle and half-widths (spread)."""

    open_rad: float = field(
        1.35, FINITE, "rad, the door's angle that counts as success; it ends at 1.57"
    )
    door_mm: tuple[float, float, float] = field((-250.0, 300.0, 301.0), FINITE, "mm, door's places")
    door_spread_mm: tuple[float, float, float] = field(
        (50.0, 50.0, 49.0), NON_NEGATIVE, "mm, half-widths of the door's places"
    )
    friction: float = field(1.0, POSITIVE, "coefficient of friction of the handle")
    horizon: int = field(180, POSITIVE_INT, "control steps of an episode")
    bonus: float = field(5.0, FINITE, "reward at success, on top of the -1 of every step")

    def __post_init__(self) -> None:
        config_fields.check(self, "env.")


class Physics(NamedTuple):
    """What the task carries."""

    body: Body  # arm and hand [28], door, handle
    frame: Array  # [3] metres, place of the door's frame
    palm: Array  # [3] metres, its grasp site


class Plan(NamedTuple):
    """What a demonstrator drew."""

    way: Array  # [] int32: 0 comes to the handle from above, 1 from its free end
    error: Array  # [3] metres, of where it sees the handle


_HOOKING = tuple(f"C_{finger}{bone}" for finger in adroit.FINGERS for bone in ("middle", "distal"))
# These touch the handle without friction: a quarter of the solver's rows.
_GUARDING = (*(f"C_{finger}proximal" for finger in adroit.FINGERS), "C_thmiddle", "C_thdistal")


def _edit(friction: float, spec: mujoco.MjSpec) -> None:
    """Names for what touches, viscous friction, and a bar across the palm in place of its box."""
    door, latch = spec.body("door"), spec.body("latch")
    door.geoms[0].name = "leaf"
    spec.body("frame").geoms[1].name = "post"
    _, handle, bolt = latch.geoms
    handle.name, bolt.name = "handle", "bolt"
    spec.joint("door_hinge").damping[0] = HINGE_DAMPING
    spec.joint("latch").damping[0] = LATCH_DAMPING
    spec.body("palm").add_geom(
        name="bar",
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[-0.03, 0.0, 0.08, 0.035, 0.0, 0.08],
        size=[0.0111, 0.0, 0.0],
        mass=0.0,
        contype=0,
        conaffinity=0,
        group=4,
    )
    adroit.add_contacts(spec, "handle", ("bar", *_HOOKING), friction)
    adroit.add_contacts(spec, "handle", _GUARDING)
    adroit.add_contacts(spec, "bolt", ("post",))
    adroit.add_contacts(spec, "leaf", adroit.add_feelers(spec))


def handle_place(physics: Physics) -> Array:
    """Where the handle's site is, [3] metres."""
    body, frame, _ = physics
    return _handle_at(frame, body.qpos[HINGE], body.qpos[LATCH])


def _handle_at(frame: Array, hinge: Array, latch: Array) -> Array:
    """The handle's site [3], metres, with door and handle at these angles [], radians."""
    along, out, _ = GRIP_AT
    x = LATCH_AT[0] + along * jnp.cos(latch)
    z = LATCH_AT[2] - along * jnp.sin(latch)
    cos, sin = jnp.cos(hinge), jnp.sin(hinge)
    from_hinge = jnp.stack([cos * x - sin * out, sin * x + cos * out, z])
    return frame + HINGE_AT + from_hinge


def observe(config: Config, joints: JointRange, physics: Physics) -> Array:
    """The observation [42]; see the module."""
    body, _, palm = physics
    middle = 0.001 * np.asarray(config.door_mm) + HINGE_AT + LATCH_AT + GRIP_AT
    parts = (
        joints.to_unit(body.qpos),
        (handle_place(physics) - middle) / FAR,
        (palm - handle_place(physics)) / NEAR,
        body.qvel[:ARM] / SPEED,
        body.qvel[HAND:] / SPEED,
    )
    return jnp.concatenate(parts)


def make(config: Config, backend: Backend = "mjx") -> Env:
    """Build the task."""

    def edit(spec: mujoco.MjSpec) -> None:
        _edit(config.friction, spec)

    def edit_drawn(spec: mujoco.MjSpec) -> None:
        _edit(config.friction, spec)
        spec.body("frame").mocap = True  # renderers move it; episodes do so by their model

    model = adroit.simulated_model("door", edit)
    simulated = simulation(model, adroit.SUBSTEPS, backend)
    commands = adroit.joint_range(model.actuator_ctrlrange)
    joints = adroit.joint_range(model.jnt_range)
    grasp, frame_id = model.site("S_grasp").id, model.body("frame").id
    body_pos = model.body_pos.astype(np.float32)

    def sense(body: Body, frame: Array) -> Physics:
        return Physics(body=body, frame=frame, palm=simulated.frames(body).site_xpos[grasp])

    def reset(key: Array) -> State:
        frame_key, state_key = jax.random.split(key)
        frame = sample_box_mm(frame_key, config.door_mm, config.door_spread_mm)
        body = at_rest(jnp.zeros(HAND + 2), nv=HAND + 2)
        body = body._replace(model={"body_pos": jnp.asarray(body_pos).at[frame_id].set(frame)})
        physics = sense(body, frame)
        return initial_state(physics, observe(config, joints, physics), state_key)

    def step(state: State, action: Array) -> State:
        body, frame, _ = state.physics
        physics = sense(simulated.step(body, commands.from_unit(action)), frame)
        return next_state(
            state,
            physics=physics,
            obs=observe(config, joints, physics),
            success=physics.body.qpos[HINGE] >= config.open_rad,
            bonus=config.bonus,
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
        scene=lambda: Scene(
            adroit.render_model("door", edit_drawn), _pose, "vil_camera", simulated=model
        ),
    )


def _pose(state: State) -> dict[str, np.ndarray]:
    return {"qpos": state.physics.body.qpos, "mocap_pos": state.physics.frame[None]}


# The scripted way. Offsets are from the handle's site to the palm's, in the frame of hand and
# handle, which roll together.
_OFFSET = np.array([0.0, -0.03, -0.012])  # metres, at the grasp
_START = np.array([[0.0, 0.0, 0.09], [0.16, 0.0, 0.0]])  # metres from there: above, beside
_BEFORE = np.array([0.0, -0.12, 0.0])  # metres from the start, clear of the handle
_NEAR_ENOUGH = 0.045  # metres from its place within which the hand closes
_LOST = 0.08  # metres beyond which it has lost the handle
_CURLED = 12  # the middle finger's second joint
_HOOKED = 0.8  # radians of it beyond which the fingers hold
_PRESS = 0.6  # radians the aim is ahead of the handle
_TURNED = 1.35  # radians the handle is turned
_UNDONE = 1.2  # radians of the handle at which the bolt is free
_AJAR = 0.05  # radians of the door beyond which the bolt stays so
_DOOR_LEAD = 0.3  # radians the aim is ahead of the door
_FLUNG = 0.8  # radians of the door at which the hand lets go; the door swings on
_AWAY = np.array([0.2, -0.2, 0.0])  # metres from the palm: it makes way
_LEVER = 0.5  # metres from the arm's base to the palm's site
_GRAVITY = 15.6  # N·m about the base, of arm and hand held level
_MAX_ERROR = np.array([0.12, 0.2, 0.15, 0.2])  # metres, radians: bounds the arm's pull


def _posture(knuckle: float, middle: float, tip: float) -> np.ndarray:
    """Commands [22] of the fingers, radians: all four alike, the thumb below the handle."""
    curl, thumb = (knuckle, middle, tip), (-1.0, 1.1, 0.0, 0.0, -0.6)
    return np.array([0.0, *curl, 0.0, *curl, 0.0, *curl, 0.0, 0.0, *curl, *thumb])


_STRETCHED, _HOOK, _FIST = _posture(0.3, 0.3, 0.1), _posture(0.1, 1.3, 0.2), _posture(0.4, 1.5, 1.0)
_APPROACH = np.stack([_STRETCHED, _HOOK])  # by way


def demonstrator(commands: JointRange, noise: float) -> Demonstrator:
    """Come to the handle, hook the fingers round it, turn with it, fling the door.

    It comes from above or from the handle's free end. Noise misplaces the handle once per episode
    (10 mm std per unit) and disturbs every action (0.02 std per unit).
    """

    def init(key: Array, state: State) -> Plan:
        way_key, error_key = jax.random.split(key)
        return Plan(
            way=jax.random.randint(way_key, (), 0, 2),
            error=0.01 * noise * jax.random.normal(error_key, (3,)),
        )

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        body, frame, palm = state.physics
        hinge, latch = body.qpos[HINGE], body.qpos[LATCH]
        grasp_offset = plan.error + _rolled(_OFFSET, latch)
        off = palm - handle_place(state.physics) - grasp_offset
        hooked = body.qpos[_CURLED] > _HOOKED
        around = jnp.linalg.norm(off) < jnp.where(hooked, _LOST, _NEAR_ENOUGH)
        holds = around & hooked
        flung = hinge > _FLUNG
        undone = (latch > _UNDONE) | (hinge > _AJAR)
        turned = jnp.minimum(latch + _PRESS, _TURNED)
        led = _handle_at(frame, hinge + _DOOR_LEAD * undone, turned) + grasp_offset
        grasp = palm - off
        detour = _detour(off, jnp.asarray(_START)[plan.way])
        aim = jnp.where(around, jnp.where(holds, led, grasp), grasp + detour)
        aim = jnp.where(flung, palm + _AWAY, aim)
        roll = jnp.where(holds & ~flung, turned, latch)
        fingers = jnp.where(around, _FIST, jnp.asarray(_APPROACH)[plan.way])
        fingers = jnp.where(flung, _STRETCHED, fingers)
        arm = _arm_commands(body, palm, aim, roll)
        action = commands.to_unit(jnp.concatenate([arm, fingers]))
        return add_action_noise(action, key, 0.02 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


def _detour(off: Array, start: Array) -> Array:
    """Where to aim, [3] metres from the grasp, if the hand is ``off`` [3] from it.

    First in front of ``start`` [3], then at ``start``, and straight from there on.
    """
    length = jnp.linalg.norm(start)
    along = jnp.dot(off, start) / length
    astray = jnp.linalg.norm(off - along * start / length)
    outside = (along < 0.6 * length) & (off[1] < -0.06)
    return jnp.where(outside, start + _BEFORE, jnp.clip((astray - 0.015) / 0.03, 0.0, 1.0) * start)


def _rolled(offset: np.ndarray, roll: Array) -> Array:
    """``offset`` [3] turned about the y axis by ``roll`` [] radians."""
    x, y, z = offset
    cos, sin = jnp.cos(roll), jnp.sin(roll)
    return jnp.stack([cos * x + sin * z, jnp.float32(y), cos * z - sin * x])


def _arm_commands(body: Body, palm: Array, aim: Array, roll: Array) -> Array:
    """Commands [6] of arm and wrist that bring the ``palm`` [3] to ``aim`` [3].

    Level, with the hand at ``roll`` [] radians. It goes sideways by turning.
    """
    q, v = body.qpos[:ARM], body.qvel[:ARM]
    off, zero = aim - palm, jnp.zeros(())
    target = jnp.stack([q[0] + off[1], q[1] - off[2] / _LEVER, q[2] - off[0] / _LEVER, roll])
    load = jnp.zeros(ARM).at[1].set(-_GRAVITY * jnp.cos(q[1]))
    wrist = jnp.stack([zero, -q[1] * jnp.cos(q[3])])
    return jnp.concatenate([adroit.arm_command(target, q, v, _MAX_ERROR, load), wrist])
