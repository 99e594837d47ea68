"""The environment protocol: a record of pure functions over one environment; callers vmap.

Every function works under jit and vmap. An environment carries only what it needs between steps
(joint positions and velocities, its own goal), never a whole ``mjx.Data``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any

NO_SUCCESS = "none: judged by its return"
"""The success rule of a task that is scored by its return."""


class State(NamedTuple):
    """One environment between two control steps."""

    physics: PyTree  # whatever the task carries
    obs: Array  # [O] float32
    reward: Array  # [] float32, of the step that led here; 0 after reset
    terminated: Array  # [] bool: the task ended, in success or failure; no value follows
    truncated: Array  # [] bool: ended from outside (time limit, diverged physics); a value follows
    success: Array  # [] bool: reached at this step
    diverged: Array  # [] bool: the physics became NaN or infinite at this step and was held back
    time: Array  # [] int32 control steps since reset
    key: Array  # typed key []; a stochastic environment splits it in ``step``

    @property
    def done(self) -> Array:
        """[] bool: the episode is over, for whichever reason."""
        return self.terminated | self.truncated


class Demonstrator(NamedTuple):
    """A scripted expert. It may use the whole state, and keeps what it drew at the start."""

    init: Callable[[Array, State], PyTree]  # (key, state) -> memory, with its way (mode) and errors
    act: Callable[[PyTree, State, Array], tuple[Array, PyTree]]
    """(memory, state, key) -> (action [A] in [-1, 1], memory)"""
    mode: Callable[[PyTree], Array]  # memory -> int32 []: which way was drawn, 0 … modes − 1
    modes: int


class Scene(NamedTuple):
    """What a renderer needs; host side only."""

    model: Any  # mujoco.MjModel that is drawn
    pose: Callable[[State], dict[str, Any]]
    """State of numpy leaves -> MjData fields to set, e.g. {"qpos": ..., "mocap_pos": ...}"""
    camera: str
    simulated: Any = None  # the MjModel that is simulated, if that is another one

    @property
    def physics(self) -> Any:
        """The MjModel that is simulated."""
        return self.model if self.simulated is None else self.simulated


class EnvSpecs(NamedTuple):
    """Facts of a task; plain values."""

    name: str
    obs_dim: int
    action_dim: int
    horizon: int  # control steps of an episode
    control_dt: float  # seconds of one control step
    success: str  # the success rule in words, or NO_SUCCESS
    tasks: tuple[str, ...] = ()  # names of the tasks of a multi-task environment, by their codes

    @property
    def by_return(self) -> bool:
        """True if the task has no success rule and is scored by its return."""
        return self.success == NO_SUCCESS


class Env(NamedTuple):
    """A task."""

    reset: Callable[[Array], State]  # key -> state
    step: Callable[[State, Array], State]  # (state, action [A] in [-1, 1]) -> state
    specs: EnvSpecs
    demonstrator: Callable[[float], Demonstrator] | None = None  # of a noise level; 0 is clean
    scene: Callable[[], Scene] | None = None
    task: Callable[[State], Array] | None = None  # [] int32, index into ``specs.tasks``
