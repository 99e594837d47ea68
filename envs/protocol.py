"""The environment protocol: a record of pure functions over one environment; callers vmap.

Every function is jit- and vmap-clean. An environment carries only what it needs between steps (joint positions and
velocities, warm start, its own goal), never a whole ``mjx.Data``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class State(NamedTuple):
    """One environment between two control steps."""

    physics: PyTree  # whatever the task carries
    obs: Array  # [O] float32
    reward: Array  # [] float32, of the step that led here; 0 after reset
    terminated: Array  # [] bool: the task ended, in success or failure; no value follows
    truncated: Array  # [] bool: ended from outside (time limit, diverged physics); a value follows
    success: Array  # [] bool: reached at this step
    diverged: Array  # [] bool: the physics left the finite numbers at this step and was held back
    time: Array  # [] int32 control steps since reset
    key: Array  # typed key []; a stochastic environment splits it in ``step``

    @property
    def done(self) -> Array:
        """[] bool: the episode is over, for whichever reason."""
        return self.terminated | self.truncated


class Demonstrator(NamedTuple):
    """A scripted expert. It may look at the whole state, and remembers what it drew at the start of an episode.

    init: (key, State) -> memory          draws the way (mode) this episode is solved and its errors
    act:  (memory, State, key) -> (action [A] in [-1, 1], memory)
    mode: (memory) -> int32 []            which way was drawn, in 0 … modes-1
    """

    init: Callable[[Array, State], PyTree]
    act: Callable[[PyTree, State, Array], tuple[Array, PyTree]]
    mode: Callable[[PyTree], Array]
    modes: int


class Scene(NamedTuple):
    """What a renderer needs; host side only.

    model:     mujoco.MjModel that is drawn
    pose:      (State of numpy leaves) -> dict of MjData fields to set, e.g. {"qpos": ..., "mocap_pos": ...}
    simulated: the MjModel that is simulated, where that is another one
    """

    model: Any
    pose: Callable[[State], dict[str, Any]]
    camera: str
    simulated: Any = None

    @property
    def physics(self) -> Any:
        """The MjModel that is simulated."""
        return self.model if self.simulated is None else self.simulated


NO_SUCCESS = "none: judged by its return"


class EnvSpecs(NamedTuple):
    """Facts of a task; plain values."""

    name: str
    obs_dim: int
    action_dim: int
    horizon: int  # control steps of an episode
    control_dt: float  # seconds of one control step
    success: str  # the success rule in words; NO_SUCCESS where there is none
    tasks: tuple[
        str, ...
    ] = ()  # of an environment that holds several: their names, in the order of their codes

    @property
    def by_return(self) -> bool:
        """The task has no success: its return tells how well it went."""
        return self.success == NO_SUCCESS


class Env(NamedTuple):
    """reset: (key) -> State;  step: (State, action [A] in [-1, 1]) -> State."""

    reset: Callable[[Array], State]
    step: Callable[[State, Array], State]
    specs: EnvSpecs
    demonstrator: Callable[[float], Demonstrator] | None = (
        None  # noise level (0 = clean) -> Demonstrator
    )
    scene: Callable[[], Scene] | None = None
    task: Callable[[State], Array] | None = (
        None  # where ``specs.tasks`` has names: which of them, [] int32
    )
