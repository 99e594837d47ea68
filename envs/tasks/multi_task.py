"""multi_task: eight tasks on one table, under one observation and one action; a task is drawn at each reset.

A hand on three slides closes two fingers, each with a pad of two balls, along x. In front stand a block, a peg and a
socket for it; at the back a drawer, a hinged door and a sprung button. What a task does not use stays where it is. A
task is one record of ``TASKS``. Only pairs that matter touch: pads and what they handle, the peg's foot and the socket
and the block, loose things and the table. The table is smooth: loose things are held back by drag, since the cheap
solver makes a block that rubs on it hop. The origin is on the table, z up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax.envs.physics.common import (
    add_action_noise,
    clip_step_towards,
    initial_state,
    integrate_command,
    next_state,
    yaw_axes,
    yaw_quaternion,
)
from gcp_jax.envs.physics.mjx import CONTROL_DT, Body, at_rest, scene, simulation
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene, State

Array = jax.Array

# Success of 256 episodes in percent:
# noise  all   reach push pick_place drawer door button insert stack
# 0.0   99.6    100  100     100      100   100   100    97    100
# 2.0   62.5     50   63      39       71    54    84    68     75
# 3.2   29.3     23   30       6       46    26    36    35     34
# 5.2    8.6      4   10       0       20     6    24     5      3
QUALITY = {"expert": 0.0, "mixed": 2.0, "poor": 3.2, "bad": 5.2}

HALF = 0.02  # metres, half the side of the block
PEG_HALF = np.array([0.012, 0.012, 0.03])  # metres, half the sides of the peg
X, Z = np.eye(3)[0], np.eye(3)[2]
HOLD = np.array([0.0, 0.0, 0.012])  # metres, where the peg is held, from its middle
SOCKET = np.array([0.165, -0.06])  # metres, axis of the socket
RIM = 0.028  # metres, height of the socket's mouth
DRAWER = np.array([-0.13, 0.13, 0.07])  # metres, handle of the closed drawer; it opens along x
HINGE = np.array([0.15, 0.19])  # metres, vertical axis of the door
DOOR = np.array(
    [0.1, 0.07]
)  # metres, handle of the door: from the hinge, and height; it opens towards -x
BUTTON = np.array([0.02, 0.14, 0.045])  # metres, middle of the top of the free button

PAD = 0.006  # metres, radius of the balls of a pad
OPEN, CLOSED = 0.042, 0.008  # metres from the middle of the hand to a pad's centre, commanded
LEAD = 0.02  # metres the commanded position may run ahead of the hand
SQUEEZE = 0.01  # metres the commanded opening may run ahead of the fingers: bounds the grip force
LIMITS = np.array(
    [[-0.2, -0.16, 0.015], [0.2, 0.2, 0.18]]
)  # metres, commanded position of the hand

NEAR = 0.05  # metres of one unit of relative position in the observation
FAR = 0.1  # metres of one unit of position on the table
SPEED = 0.3  # m/s of one unit of velocity
STROKE = np.array(
    [0.05, 0.5, 0.01]
)  # metres, radians, metres of one unit of drawer, door and button

# Of the demonstrator:
PUSH = 0.016  # metres, height at which the demonstrator pushes the block
TOUCH = HALF + 0.008 + PAD  # metres from the middle of the block to the hand that touches its side
FIRM = 0.4 * SQUEEZE  # metres the fingers must lag for it to lift
AHEAD = 0.2  # radians it pulls the door ahead of where it is
BEYOND = 0.01  # metres past the goal that it aims for with drawer and button
PINCH = 0.016  # metres, opening with which it pushes


@dataclass(frozen=True)
class Config:
    """Lengths in millimetres, as the names say; boxes of starts and goals as their middle and half-widths."""

    tasks: tuple[str, ...] = field(
        default_factory=lambda: tuple(GOALS)
    )  # those that are drawn, equally often
    tolerance_mm: float = 10.0  # distance from the goal that counts as there: reach, push, pick_place, stack (sideways)
    still: float = 0.1  # m/s a loose thing may move when it is there
    speed_mm: float = (
        8.0  # the commanded position moves this far per control step at action 1, per axis
    )
    grip_mm: float = (
        4.0  # the commanded opening of each finger changes by this per control step at action 1
    )
    hand_mm: tuple[float, float, float] = (0.0, 0.0, 110.0)
    hand_spread_mm: tuple[float, float, float] = (30.0, 20.0, 15.0)
    block_mm: tuple[float, float] = (-70.0, -70.0)
    block_spread_mm: tuple[float, float] = (20.0, 20.0)
    peg_mm: tuple[float, float] = (50.0, -60.0)
    peg_spread_mm: tuple[float, float] = (15.0, 25.0)
    yaw: float = 0.15  # radians, block and peg are turned by up to this
    reach_mm: tuple[float, float, float] = (0.0, 0.0, 90.0)
    reach_spread_mm: tuple[float, float, float] = (130.0, 110.0, 50.0)
    push_mm: tuple[float, float] = (-70.0, 35.0)
    push_spread_mm: tuple[float, float] = (25.0, 15.0)
    lift_mm: tuple[float, float, float] = (-20.0, 30.0, 100.0)
    lift_spread_mm: tuple[float, float, float] = (50.0, 30.0, 25.0)
    drawer_mm: tuple[float, float] = (60.0, 10.0)  # to be opened this far, drawn per episode
    door: tuple[float, float] = (0.7, 0.1)  # radians, likewise
    button_mm: tuple[float, float] = (13.0, 2.0)  # to be pressed this far, likewise
    clearance_mm: float = 4.0  # side of the socket minus the peg's
    depth_mm: float = 20.0  # foot of the peg this far below the socket's mouth: inserted
    friction: float = 1.0
    drag: float = 1.0  # N s/m that holds block and peg back
    horizon: int = 100  # control steps
    bonus: float = 5.0  # reward on top of the −1 of the step of success


class Physics(NamedTuple):
    """body: hand, fingers, block, peg, fixtures; command [4]: hand and opening, metres; task [] int32: its code;
    drawn [3] in [-1, 1]: which of its goals."""

    body: Body
    command: Array
    task: Array
    drawn: Array


class Places(NamedTuple):
    """Where things are: the hand, the middles of block and peg, the handles, the button's top, [3] metres each."""

    hand: Array
    block: Array
    peg: Array
    drawer: Array
    door: Array
    button: Array


class View(NamedTuple):
    """What a task looks at, in metres and seconds. turned: x and z axes of block and peg; moving: their velocities."""

    places: Places
    fingers: Array  # [2] openings
    fixtures: Array  # [3] drawer, door (radians), button
    turned: Array  # [2, 2, 3]
    moving: Array  # [2, 3]
    command: Array  # [4]
    goal: Array  # [3]


class Plan(NamedTuple):
    """What a demonstrator drew: way [] int32, 0 swings right and 1 left; the errors [3] in metres of where it sees the
    thing and the goal."""

    way: Array
    thing_error: Array
    goal_error: Array


class Move(NamedTuple):
    """Where the hand should go: to [3] and opening [], metres."""

    to: Array
    opening: Array


class Goal(NamedTuple):
    """One task. The thing is to be brought to the goal; adding a record to ``TASKS`` is all that a new one takes.

    rule:    when it succeeded, in words; formatted with the ``config``
    thing:   (Places) -> [3] metres
    goal:    (Config, Places, drawn [3] in [-1, 1]) -> [3] metres
    success: (Config, View) -> [] bool
    aim:     (View, Plan) -> Move of the demonstrator
    blur:    metres, std per unit of noise of where the demonstrator sees thing and goal
    """

    rule: str
    thing: Callable[[Places], Array]
    goal: Callable[[Config, Places, Array], Array]
    success: Callable[[Config, View], Array]
    aim: Callable[[View, Plan], Move]
    blur: float


_WORLD = """
<camera name="main" pos=".0 -.62 .52" xyaxes="1 0 0 0 .66 .75" fovy="40"/>
<geom name="floor" type="plane" size="1 1 .1" material="tiles"/>
<body name="goal" mocap="true"><geom type="sphere" size=".01" material="goal"/></body>
<body name="hand" gravcomp="1">
  <joint name="x" type="slide" axis="1 0 0" damping="70"/>
  <joint name="y" type="slide" axis="0 1 0" damping="70"/>
  <joint name="z" type="slide" axis="0 0 1" damping="70"/>
  <geom type="capsule" fromto="0 0 .065 0 0 .1" size=".02" mass=".6" material="dark"/>
  <geom type="box" pos="0 0 .055" size=".055 .01 .008" mass=".05" material="dark"/>
  <body name="left" gravcomp="1">
    <joint name="left" type="slide" axis="-1 0 0" damping="12" ref="{open}"/>
    {left}
  </body>
  <body name="right" gravcomp="1">
    <joint name="right" type="slide" axis="1 0 0" damping="12" ref="{open}"/>
    {right}
  </body>
</body>
<body name="block">
  {free}
  <geom name="block" type="box" size="{half} {half} {half}" mass=".1" material="object"/>
</body>
<body name="peg">
  {free}
  <geom name="peg" type="box" size="{peg_half}" mass=".06" material="obstacle"/>
  {corners}
</body>
<body name="socket" pos="{socket}">
  <geom name="west" type="box" pos="-{wall} 0 {mid}" size=".006 {span} {mid}" material="fixture"/>
  <geom name="east" type="box" pos="{wall} 0 {mid}" size=".006 {span} {mid}" material="fixture"/>
  <geom name="south" type="box" pos="0 -{wall} {mid}" size="{gap} .006 {mid}" material="fixture"/>
  <geom name="north" type="box" pos="0 {wall} {mid}" size="{gap} .006 {mid}" material="fixture"/>
</body>
<geom type="box" pos="-.21 .13 .025" size=".055 .045 .025" material="dark"/>
<body name="drawer" pos="{drawer}">
  <joint name="drawer" type="slide" axis="1 0 0" damping="8" range="0 .1"/>
  <geom type="box" pos="-.065 0 -.048" size=".06 .038 .016" mass=".3" material="fixture"/>
  <geom type="box" pos="0 0 -.045" size=".006 .045 .02" mass=".05" material="fixture"/>
  <geom type="capsule" fromto="0 -.025 -.025 0 -.025 0" size=".005" mass=".01" material="steel"/>
  <geom type="capsule" fromto="0 .025 -.025 0 .025 0" size=".005" mass=".01" material="steel"/>
  <geom name="drawer" type="capsule" fromto="0 -.025 0 0 .025 0" size=".01" mass=".03" material="steel"/>
</body>
<geom type="capsule" fromto="{hinge} 0 {hinge} .06" size=".01" material="dark"/>
<body name="door" pos="{hinge} 0">
  <joint name="door" type="hinge" axis="0 0 -1" damping=".1" range="0 1.2"/>
  <geom type="box" pos="0 -.05 .027" size=".006 .05 .024" mass=".3" material="fixture"/>
  <geom name="door" type="capsule" fromto="0 -{door} .04 0 -{door} .085" size=".01" mass=".05" material="steel"/>
</body>
<geom type="box" pos="{button_xy} .012" size=".03 .03 .012" material="dark"/>
<body name="button" pos="{button}" gravcomp="1">
  <joint name="button" type="slide" axis="0 0 -1" stiffness="150" damping="4" range="0 .02"/>
  <geom name="button" type="box" pos="0 0 -.015" size=".02 .02 .015" mass=".1" material="obstacle"/>
</body>
"""

_FINGER = """
<geom type="box" pos="{x} 0 .027" size=".004 .008 .028" mass=".04" material="steel"/>
<geom name="{side}_front" type="sphere" pos="{x} -.008 0" size="{pad}" mass=".005" material="steel"/>
<geom name="{side}_back" type="sphere" pos="{x} .008 0" size="{pad}" mass=".005" material="steel"/>
<geom name="{side}" type="capsule" fromto="{x} -.008 0 {x} .008 0" size="{pad}" mass="0" material="steel"/>
"""

_FREE = """
<joint type="slide" axis="1 0 0" damping="{drag}"/>
<joint type="slide" axis="0 1 0" damping="{drag}"/>
<joint type="slide" axis="0 0 1" damping="{drag}"/>
<joint type="ball" damping=".001"/>
"""

_CORNER = '<geom name="{name}" type="sphere" pos="{x} {y} {z}" size="{size}" mass="0" material="obstacle"/>'

_SMOOTH = '<pair geom1="floor" geom2="{thing}" condim="1"/>'

_PAIR = '<pair geom1="{one}" geom2="{other}" condim="3" friction="{mu} {mu} .005 .0001 .0001"/>'

_SIDES = ("left", "right")
_CORNERS = tuple(f"corner{i}" for i in range(4))

_TOUCHING = (
    *(
        (f"{side}_{place}", thing)
        for side in _SIDES
        for place in ("front", "back")
        for thing in ("block", "peg", "button")
    ),
    *((side, handle) for side in _SIDES for handle in ("drawer", "door")),
    *(
        (corner, other)
        for corner in _CORNERS
        for other in ("west", "east", "south", "north", "block")
    ),
)

_ACTUATORS = "".join(f'<position joint="{axis}" kp="1500"/>' for axis in "xyz") + "".join(
    f'<position joint="{side}" kp="400"/>' for side in _SIDES
)


def mjcf(config: Config) -> str:
    """The scene in metres."""
    gap = PEG_HALF[0] + 0.0005 * config.clearance_mm
    world = _WORLD.format(
        open=OPEN,
        left=_FINGER.format(side="left", x=-OPEN, pad=PAD),
        right=_FINGER.format(side="right", x=OPEN, pad=PAD),
        free=_FREE.format(drag=config.drag),
        half=HALF,
        peg_half=_text(PEG_HALF),
        corners="".join(_corners()),
        socket=_text([*SOCKET, 0.0]),
        gap=gap,
        wall=gap + 0.006,
        span=gap + 0.012,
        mid=0.5 * RIM,
        drawer=_text(DRAWER),
        hinge=_text(HINGE),
        door=DOOR[0],
        button=_text(BUTTON),
        button_xy=_text(BUTTON[:2]),
    )
    return scene(
        "multi_task",
        world=world,
        pairs="".join(_SMOOTH.format(thing=thing) for thing in ("block", "peg"))
        + "".join(
            _PAIR.format(one=one, other=other, mu=config.friction) for one, other in _TOUCHING
        ),
        actuators=_ACTUATORS,
        gravity=9.81,
        max_contact_points=8,
        iterations=2,  # a pushed block slips off the pads with one; two do as a hundred
    )


def _text(numbers: Iterable[float]) -> str:
    return " ".join(f"{x:g}" for x in numbers)


def _corners(rounding: float = 0.001) -> list[str]:
    """The four corners of the peg's foot, as balls: they meet the socket and the block as a box does, at less cost."""
    x, y, z = PEG_HALF - rounding
    signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    return [
        _CORNER.format(name=name, x=i * x, y=j * y, z=-z, size=rounding)
        for name, (i, j) in zip(_CORNERS, signs, strict=True)
    ]


def places(qpos: Array) -> Places:
    """Where things are, from joint positions [22]."""
    drawer, door, button = qpos[19:22]
    reach = DOOR[0] * jnp.stack([-jnp.sin(door), -jnp.cos(door)])
    return Places(
        hand=qpos[:3],
        block=qpos[5:8],
        peg=qpos[12:15],
        drawer=DRAWER + drawer * X,
        door=jnp.append(HINGE + reach, DOOR[1]),
        button=BUTTON - button * Z,
    )


def view(config: Config, physics: Physics) -> View:
    """What the episode's task looks at."""
    qpos, qvel = physics.body.qpos, physics.body.qvel
    where = places(qpos)
    return View(
        places=where,
        fingers=qpos[3:5],
        fixtures=qpos[19:22],
        turned=jnp.stack([jnp.stack(yaw_axes(turn)) for turn in (qpos[8:12], qpos[15:19])]),
        moving=jnp.stack([qvel[5:8], qvel[11:14]]),
        command=physics.command,
        goal=_pick(
            physics.task, (task.goal(config, where, physics.drawn) for task in GOALS.values())
        ),
    )


def _pick(task: Array, values: Iterable[Any]) -> Any:
    """The one of ``values``, in the order of ``TASKS``, that belongs to ``task`` [] int32."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[task], *values)


def _observe(view: View, task: Array, hand_velocity: Array) -> Array:
    """[59]: the task, one of all; hand, its velocity, lead of the command, openings and lead of the grip; block and peg
    from the hand, their x and z axes and velocities; joints of the fixtures, handles and button from the hand; goal
    from the task's thing; all of order one."""
    hand, others = view.places.hand, jnp.stack(view.places[1:])
    thing = _pick(task, (one.thing(view.places) for one in GOALS.values()))
    parts = (
        jax.nn.one_hot(task, len(GOALS)),
        hand / FAR,
        hand_velocity / SPEED,
        (view.command[:3] - hand) / LEAD,
        (view.fingers - HALF - PAD) / SQUEEZE,
        (view.command[3:] - jnp.mean(view.fingers)) / SQUEEZE,
        (others - hand[None]).ravel() / FAR,
        view.turned.ravel(),
        view.moving.ravel() / SPEED,
        view.fixtures / STROKE,
        (view.goal - thing) / NEAR,
    )
    return jnp.concatenate(parts)


def make(config: Config) -> Env:
    """action [4]: how the commanded hand position and opening change, in units of ``speed_mm`` and ``grip_mm``.

    Raises ValueError for a task that does not exist, or none.
    """
    codes = _codes(config)
    simulated = simulation(mjcf(config))
    speed = 0.001 * np.array([config.speed_mm] * 3 + [config.grip_mm])
    low, high = np.append(LIMITS[0], CLOSED), np.append(LIMITS[1], OPEN)
    ahead = np.array([LEAD] * 3 + [SQUEEZE])

    def observe(physics: Physics) -> Array:
        return _observe(view(config, physics), physics.task, physics.body.qvel[:3])

    def reset(key: Array) -> State:
        task_key, goal_key, hand_key, block_key, peg_key, yaw_key, state_key = jax.random.split(
            key, 7
        )
        hand = _box(config.hand_mm, config.hand_spread_mm, _unit(hand_key, 3))
        block = _box(config.block_mm, config.block_spread_mm, _unit(block_key, 2))
        peg = _box(config.peg_mm, config.peg_spread_mm, _unit(peg_key, 2))
        block_yaw, peg_yaw = config.yaw * _unit(yaw_key, 2)
        parts = (
            hand,
            jnp.full(2, OPEN),
            _standing(block, HALF, block_yaw),
            _standing(peg, PEG_HALF[2], peg_yaw),
            jnp.zeros(3),
        )
        physics = Physics(
            body=at_rest(jnp.concatenate(parts), nv=20),
            command=jnp.append(hand, OPEN),
            task=jax.random.choice(task_key, codes),
            drawn=_unit(goal_key, 3),
        )
        return initial_state(physics, observe(physics), state_key)

    def step(state: State, action: Array) -> State:
        body, target = state.physics.body, state.physics.command
        held = jnp.append(body.qpos[:3], jnp.mean(body.qpos[3:5]))
        target = integrate_command(
            target, action, reach=speed, low=low, high=high, held=held, lead=ahead
        )
        body = simulated.step(body, jnp.append(target, target[3]))
        physics = state.physics._replace(body=body, command=target)
        seen = view(config, physics)
        return next_state(
            state,
            physics=physics,
            obs=observe(physics),
            success=_pick(physics.task, (task.success(config, seen) for task in GOALS.values())),
            bonus=config.bonus,
        )

    specs = EnvSpecs(
        name="multi_task",
        obs_dim=len(GOALS) + 51,
        action_dim=4,
        horizon=config.horizon,
        control_dt=CONTROL_DT,
        success="; ".join(
            f"{name}: {task.rule.format(config=config)}" for name, task in GOALS.items()
        ),
        tasks=tuple(GOALS),
    )
    return Env(
        reset,
        step,
        specs,
        demonstrator=lambda noise: demonstrator(config, noise),
        scene=lambda: Scene(simulated.model, lambda state: _pose(config, state), "main"),
        task=lambda state: state.physics.task,
    )


def _codes(config: Config) -> Array:
    """The codes [K] int32 of the tasks that are drawn."""
    allowed = ", ".join(GOALS)
    if not config.tasks:
        raise ValueError(f"multi_task needs at least one task; allowed: {allowed}")
    for name in config.tasks:
        if name not in GOALS:
            raise ValueError(f"multi_task has no task {name!r}; allowed: {allowed}")
    return jnp.array([tuple(GOALS).index(name) for name in config.tasks], jnp.int32)


def _unit(key: Array, size: int) -> Array:
    """[size], uniform in [-1, 1]; ``key`` is consumed."""
    return jax.random.uniform(key, (size,), minval=-1.0, maxval=1.0)


def _box(middle_mm: tuple[float, ...], spread_mm: tuple[float, ...], drawn: Array) -> Array:
    """The point [D], metres, that ``drawn`` [≥ D] in [-1, 1] picks from the box around ``middle_mm``."""
    return 0.001 * (np.asarray(middle_mm) + np.asarray(spread_mm) * drawn[: len(middle_mm)])


def _stroke(range_mm: tuple[float, float], drawn: Array) -> Array:
    """[] metres: the middle and half-width of ``range_mm`` at ``drawn`` [3]."""
    return _box(range_mm[:1], range_mm[1:], drawn)[0]


def _standing(place: Array, height: float, yaw: Array) -> Array:
    """The pose [7] of what stands at ``place`` [2] with its middle at ``height``, turned by ``yaw`` [] radians."""
    return jnp.concatenate([place, jnp.full(1, height), yaw_quaternion(yaw)])


def _pose(config: Config, state: State) -> dict[str, np.ndarray]:
    goal = view(config, jax.tree.map(jnp.asarray, state.physics)).goal
    return {"qpos": state.physics.body.qpos, "mocap_pos": np.asarray(goal)[None]}


def demonstrator(config: Config, noise: float) -> Demonstrator:
    """Does the task of the episode; swings right or left on its way to the thing and with it, where it moves freely.

    Noise misplaces thing and goal once per episode (the task's ``blur``) and shakes every action (0.1 std per unit).
    """
    speed, grip = 0.001 * config.speed_mm, 0.001 * config.grip_mm

    def init(key: Array, state: State) -> Plan:
        way_key, thing_key, goal_key = jax.random.split(key, 3)
        way = jax.random.randint(way_key, (), 0, 2)
        blur = noise * jnp.array([task.blur for task in GOALS.values()])[state.physics.task]
        return Plan(way, *(blur * jax.random.normal(k, (3,)) for k in (thing_key, goal_key)))

    def act(plan: Plan, state: State, key: Array) -> tuple[Array, Plan]:
        seen = view(config, state.physics)
        move = _pick(state.physics.task, (task.aim(seen, plan) for task in GOALS.values()))
        hand = clip_step_towards(move.to - seen.command[:3], speed)
        fingers = clip_step_towards(move.opening[None] - seen.command[3:], grip)
        return add_action_noise(jnp.concatenate([hand, fingers]), key, 0.1 * noise), plan

    return Demonstrator(init, act, mode=lambda plan: plan.way, modes=2)


def _route(
    here: Array, there: Array, way: Array, *, height: float = 0.05, slope: float = 4.0
) -> Array:
    """Where what is ``here`` [3] should head for to come down on ``there`` [3]: to its side while far, above it until
    within a millimetre or so. ``slope`` is the height per distance, up to ``height`` metres."""
    away = (there - here)[:2]
    distance = jnp.linalg.norm(away)
    swing = 0.8 * jnp.clip((distance - 0.02) / 0.04, 0.0, 1.0) * (2.0 * way - 1.0)
    above = jnp.minimum(height, slope * jnp.maximum(distance - 0.0015, 0.0))
    return there + jnp.stack([-swing * away[1], swing * away[0], above])


def _bring(view: View, thing: Array, plan: Plan, to: Array) -> Move:
    """Come down over ``thing`` [3], close, and take it ``to`` [3]; start over when it is lost."""
    hand = view.places.hand
    seen = thing + plan.thing_error
    offset = seen - hand
    around = (jnp.abs(offset[2]) < 0.008) & (jnp.hypot(offset[0], offset[1]) < 0.008)
    gripped = around & (jnp.max(view.fingers) - view.command[3] > FIRM)
    carried = hand + to - thing
    return Move(
        jnp.where(gripped, carried, _route(hand, seen, plan.way)),
        jnp.where(around, CLOSED, OPEN),
    )


def _near(thing: Callable[[Places], Array]) -> Callable[[Config, View], Array]:
    """Success: the thing is at the goal."""
    return lambda config, view: (
        jnp.linalg.norm(thing(view.places) - view.goal) < 0.001 * config.tolerance_mm
    )


def _block_rests(config: Config, view: View) -> Array:
    still = jnp.linalg.norm(view.moving[0]) < config.still
    return _near(lambda places: places.block)(config, view) & still


def _door_at(angle: Array) -> Array:
    return jnp.append(HINGE - DOOR[0] * jnp.stack([jnp.sin(angle), jnp.cos(angle)]), DOOR[1])


def _upright(view: View) -> Array:
    return view.turned[1, 1, 2] > 0.97


def _inserted(config: Config, view: View) -> Array:
    sideways = jnp.max(jnp.abs(view.places.peg[:2] - SOCKET)) < PEG_HALF[0]
    foot = view.places.peg[2] - PEG_HALF[2]
    return sideways & _upright(view) & (foot < RIM - 0.001 * config.depth_mm)


def _on_block(view: View, sideways: float) -> Array:
    away = view.places.peg - view.goal
    return (jnp.hypot(away[0], away[1]) < sideways) & (jnp.abs(away[2]) < 0.0025) & _upright(view)


def _stacked(config: Config, view: View) -> Array:
    released = jnp.min(view.fingers) > PEG_HALF[0] + PAD + 0.003
    still = jnp.linalg.norm(view.moving[1]) < config.still
    return _on_block(view, 0.001 * config.tolerance_mm) & released & still


def _stack_aim(view: View, plan: Plan) -> Move:
    """Bring the peg onto the block, then let go."""
    peg = view.places.peg
    placed = _on_block(view, 0.008)
    there = _route(peg, view.goal + plan.goal_error, plan.way)
    bring = _bring(view, peg + HOLD, plan, there + HOLD)
    return Move(
        jnp.where(placed, view.command[:3], bring.to), jnp.where(placed, OPEN, bring.opening)
    )


def _push_aim(view: View, plan: Plan) -> Move:
    """Come down at the side of the block that is furthest from the goal, then push it straight there: it sticks."""
    hand, block = view.places.hand, view.places.block + plan.thing_error
    away = (view.goal + plan.goal_error - view.places.block)[:2]
    left = jnp.linalg.norm(away)
    main = jnp.abs(away) >= jnp.max(jnp.abs(away))
    face = jnp.where(main, jnp.sign(away), 0.0)
    offset = hand[:2] - block[:2]
    along = jnp.dot(offset, face)
    beside = jnp.linalg.norm(offset - along * face)
    behind = (along < -0.025) & (beside < 0.015) & (hand[2] < PUSH + 0.008)
    ready = jnp.append(block[:2] - (TOUCH + 0.012) * face, PUSH)
    push = jnp.append(hand[:2] + jnp.minimum(0.5, 0.015 / (left + 1e-6)) * away, PUSH)
    return Move(jnp.where(behind, push, _route(hand, ready, plan.way)), jnp.float32(PINCH))


GOALS: dict[str, Goal] = {
    "reach": Goal(
        rule="the hand within {config.tolerance_mm} mm of the goal",
        thing=lambda places: places.hand,
        goal=lambda config, places, drawn: _box(config.reach_mm, config.reach_spread_mm, drawn),
        success=_near(lambda places: places.hand),
        aim=lambda view, plan: Move(
            _route(view.places.hand, view.goal + plan.goal_error, plan.way, height=0.0),
            jnp.float32(OPEN),
        ),
        blur=0.004,
    ),
    "push": Goal(
        rule="the block within {config.tolerance_mm} mm of the goal on the table, slower than {config.still} m/s",
        thing=lambda places: places.block,
        goal=lambda config, places, drawn: jnp.append(
            _box(config.push_mm, config.push_spread_mm, drawn), HALF
        ),
        success=_block_rests,
        aim=_push_aim,
        blur=0.004,
    ),
    "pick_place": Goal(
        rule="the block within {config.tolerance_mm} mm of the goal in the air, slower than {config.still} m/s",
        thing=lambda places: places.block,
        goal=lambda config, places, drawn: _box(config.lift_mm, config.lift_spread_mm, drawn),
        success=_block_rests,
        aim=lambda view, plan: _bring(
            view,
            view.places.block,
            plan,
            _route(view.places.block, view.goal + plan.goal_error, plan.way, height=0.0),
        ),
        blur=0.003,
    ),
    "drawer": Goal(
        rule="the drawer open to the goal, {config.drawer_mm[0]} mm in the middle",
        thing=lambda places: places.drawer,
        goal=lambda config, places, drawn: DRAWER + _stroke(config.drawer_mm, drawn) * X,
        success=lambda config, view: view.places.drawer[0] > view.goal[0],
        aim=lambda view, plan: _bring(
            view, view.places.drawer, plan, view.goal + plan.goal_error + BEYOND * X
        ),
        blur=0.004,
    ),
    "door": Goal(
        rule="the door open to the goal, {config.door[0]} rad in the middle",
        thing=lambda places: places.door,
        goal=lambda config, places, drawn: _door_at(config.door[0] + config.door[1] * drawn[0]),
        success=lambda config, view: view.places.door[0] < view.goal[0],
        aim=lambda view, plan: _bring(
            view, view.places.door, plan, _door_at(view.fixtures[1] + AHEAD) + plan.goal_error
        ),
        blur=0.005,
    ),
    "button": Goal(
        rule="the button pressed to the goal, {config.button_mm[0]} mm in the middle",
        thing=lambda places: places.button,
        goal=lambda config, places, drawn: BUTTON - _stroke(config.button_mm, drawn) * Z,
        success=lambda config, view: view.places.button[2] < view.goal[2],
        aim=lambda view, plan: Move(
            _route(view.places.hand, view.goal + plan.goal_error - BEYOND * Z, plan.way),
            jnp.float32(CLOSED),
        ),
        blur=0.008,
    ),
    "insert": Goal(
        rule="the peg upright in the socket, its foot {config.depth_mm} mm below the mouth",
        thing=lambda places: places.peg,
        goal=lambda config, places, drawn: jnp.append(SOCKET, PEG_HALF[2]),
        success=_inserted,
        aim=lambda view, plan: _bring(
            view,
            view.places.peg + HOLD,
            plan,
            _route(view.places.peg, view.goal + plan.goal_error, plan.way, height=0.06, slope=40.0)
            + HOLD,
        ),
        blur=0.001,
    ),
    "stack": Goal(
        rule="the peg released on the block, {config.tolerance_mm} mm off at most, slower than {config.still} m/s",
        thing=lambda places: places.peg,
        goal=lambda config, places, drawn: places.block + np.array([0.0, 0.0, HALF + PEG_HALF[2]]),
        success=_stacked,
        aim=_stack_aim,
        blur=0.002,
    ),
}
