"""MJX for tasks: settings of every scene, and control steps that compile one physics step.

By default the solver runs one iteration with four line-search steps: with no inner loop, no
environment waits for the slowest one of the batch. Every step starts from the unconstrained
acceleration, without a warm start: in float32, a single iteration from a warm start drifts until a
resting or grasped block is thrown away.

A task carries a ``Body``. ``mjx.Data`` is rebuilt from a template in every step and never leaves
it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.extend.core import jaxpr_as_fun

Array = jax.Array

Backend = Literal["mjx", "mujoco"]
"""``mjx`` is compiled; ``mujoco``, the reference, calls plain MuJoCo back for each environment."""

TIMESTEP = 0.005  # seconds of one physics step
SUBSTEPS = 5  # physics steps of one control step
CONTROL_DT = TIMESTEP * SUBSTEPS  # seconds

_MJCF = """
<mujoco model="{name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" iterations="{iterations}" ls_iterations="4" integrator="Euler"
    gravity="{gravity}">
    <flag warmstart="disable"/>
  </option>
  <custom><numeric name="max_contact_points" data="{max_contact_points}"/></custom>
  <visual>
    <headlight ambient=".35 .35 .35" diffuse=".2 .2 .2" specular=".1 .1 .1"/>
    <global offwidth="1280" offheight="960"/>
    <quality shadowsize="2048" offsamples="4"/>
    <map znear=".01" zfar="20"/>
  </visual>
  <default><geom contype="0" conaffinity="0"/></default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".92 .94 .97" rgb2=".62 .70 .80"
      width="64" height="64"/>
    <texture name="tiles" type="2d" builtin="checker" rgb1=".80 .82 .85" rgb2=".74 .76 .80"
      width="256" height="256"/>
    <material name="tiles" texture="tiles" texrepeat="16 16"/>
    <material name="steel" rgba=".55 .58 .63 1" specular=".6" shininess=".6"/>
    <material name="dark" rgba=".22 .24 .28 1" specular=".3"/>
    <material name="object" rgba=".90 .42 .16 1" specular=".3"/>
    <material name="fixture" rgba=".22 .42 .66 1" specular=".2"/>
    <material name="obstacle" rgba=".72 .20 .26 1" specular=".2"/>
    <material name="goal" rgba=".20 .72 .35 .45"/>
  </asset>
  <worldbody>
    <light pos=".3 -.5 1.2" dir="-.25 .4 -1" diffuse=".6 .6 .6" castshadow="true"/>
    {world}
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>{actuators}</actuator>
</mujoco>
"""


class Body(NamedTuple):
    """The moving parts of a scene."""

    qpos: Array  # [nq] float32
    qvel: Array  # [nv] float32
    model: dict[str, Array] = {}  # this episode's values of ``mjx.Model`` fields, by name


class Frames(NamedTuple):
    """Positions and orientations in the world, in metres."""

    xpos: Array  # [nbody, 3] bodies
    xmat: Array  # [nbody, 3, 3]
    geom_xpos: Array  # [ngeom, 3]
    site_xpos: Array  # [nsite, 3]
    site_xmat: Array  # [nsite, 3, 3]
    xanchor: Array  # [njnt, 3] a point on each joint's axis
    xaxis: Array  # [njnt, 3] direction of each joint's axis


class Simulation(NamedTuple):
    """A compiled scene."""

    model: mujoco.MjModel  # host side, for renderers and references
    step: Callable[[Body, Array], Body]  # (body, control [nu]) -> body after one control step
    frames: Callable[[Body], Frames]  # forward kinematics
    dt: float  # seconds of one control step


def scene(
    name: str,
    *,
    world: str,
    pairs: str,
    actuators: str,
    gravity: float = 0.0,
    max_contact_points: int = -1,
    iterations: int = 1,
) -> str:
    """The MJCF of a task in the settings that all tasks share.

    Args:
      name: of the model.
      world: elements of the worldbody.
      pairs: contact pairs; no other geoms touch.
      actuators: elements of the actuator section.
      gravity: m/s², positive downwards.
      max_contact_points: bound on the contacts of each kind of geom pair; −1 keeps them all.
      iterations: of the solver. More than one is a loop, in which every environment of a batch
        waits for the slowest.
    """
    return _MJCF.format(
        name=name,
        timestep=TIMESTEP,
        iterations=iterations,
        gravity=f"0 0 {-gravity}",
        max_contact_points=max_contact_points,
        world=world,
        pairs=pairs,
        actuators=actuators,
    )


def simulation(
    source: str | mujoco.MjModel, substeps: int = SUBSTEPS, backend: Backend = "mjx"
) -> Simulation:
    """Compile MJCF text or a model; a control step is ``substeps`` physics steps.

    The returned functions are already jitted, so they can be called interactively. The model's
    arrays stay on the host until a program that uses them is compiled.
    """
    model = mujoco.MjModel.from_xml_string(source) if isinstance(source, str) else source
    make_functions = {"mjx": _mjx_functions, "mujoco": _mujoco_functions}[backend]
    step, frames = make_functions(model, substeps)
    return Simulation(
        model=model,
        step=one_batch(step),
        frames=one_batch(frames),
        dt=substeps * model.opt.timestep,
    )


def one_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jit ``function`` and turn any nesting of ``vmap`` over it into a single one.

    MJX is thousands of operations. JAX would batch them anew in every nested ``vmap``, and in loops
    for every guess at which parts of the carry are batched. This batches them once per number of
    environments. The result is not differentiable in reverse.
    """
    once = traced_once(function)
    single = jax.custom_batching.custom_vmap(jax.jit(once))
    batched = jax.custom_batching.custom_vmap(jax.jit(jax.vmap(once)))

    def broadcast_unmapped(size: int, mapped: Any, args: tuple[Any, ...]) -> Any:
        return jax.tree.map(
            lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)),
            args,
            tuple(mapped),
        )

    @single.def_vmap
    def first_vmap(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        out = batched(*broadcast_unmapped(size, mapped, args))
        return out, jax.tree.map(lambda _: True, out)

    @batched.def_vmap
    def further_vmap(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        flat = jax.tree.map(
            lambda x: x.reshape(size * x.shape[1], *x.shape[2:]),
            broadcast_unmapped(size, mapped, args),
        )
        out = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), batched(*flat))
        return out, jax.tree.map(lambda _: True, out)

    return single


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluate ``function`` by its jaxpr, which is made once for each shape of its arguments.

    JAX's own ``jit`` traces anew under every ``vmap`` and mesh, and tracing MJX takes seconds of
    Python.
    """
    cache: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def evaluate(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        if (tree, shapes) not in cache:
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                jaxpr, out = jax.make_jaxpr(function, return_shape=True)(
                    *jax.tree.unflatten(tree, shapes)
                )
            cache[tree, shapes] = jaxpr_as_fun(jaxpr), jax.tree.structure(out)
        run, out = cache[tree, shapes]
        return jax.tree.unflatten(out, run(*leaves))

    return evaluate


@functools.cache
def load_mjx() -> Any:
    """Import MJX when it is first used, and its Warp backend only on a machine that can run it.

    Warp needs a CUDA device, and importing its kernels takes longer than importing JAX and MJX.
    """
    leave_out_warp = "warp" not in sys.modules and not _has_cuda()
    if leave_out_warp:
        sys.modules["warp"] = None  # type: ignore[assignment]  # an import raises ImportError
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that Warp is not installed
            from mujoco import mjx
    finally:
        if leave_out_warp:
            del sys.modules["warp"]
    return mjx


def _has_cuda() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:  # there is no such platform
        return False


def _mjx_functions(model: mujoco.MjModel, substeps: int) -> tuple[Callable, Callable]:
    """(step, frames) of ``Simulation`` by MJX."""
    mjx = load_mjx()
    host_model = _on_host(mjx.put_model(model, impl="jax"))
    host_data = _on_host(mjx.make_data(model, impl="jax"))

    def model_and_data(body: Body) -> tuple[Any, Any]:
        device_model, data = jax.tree.map(jnp.asarray, (host_model, host_data))
        return device_model.replace(**body.model), data.replace(qpos=body.qpos, qvel=body.qvel)

    def step(body: Body, control: Array) -> Body:
        device_model, template = model_and_data(body)
        template = template.replace(ctrl=control)

        def substep(body: Body, _: None) -> tuple[Body, None]:
            data = template.replace(qpos=body.qpos, qvel=body.qvel)
            with jax.numpy_rank_promotion("allow"):
                data = mjx.step(device_model, data)
            return body._replace(qpos=data.qpos, qvel=data.qvel), None

        return jax.lax.scan(substep, body, None, length=substeps)[0]

    def frames(body: Body) -> Frames:
        with jax.numpy_rank_promotion("allow"):
            data = mjx.kinematics(*model_and_data(body))
        return Frames(*(getattr(data, name) for name in Frames._fields))

    return step, frames


def _mujoco_functions(model: mujoco.MjModel, substeps: int) -> tuple[Callable, Callable]:
    """(step, frames) of ``Simulation`` by callbacks to plain MuJoCo."""

    def model_and_data(body: Body) -> tuple[mujoco.MjModel, mujoco.MjData]:
        episode_model = copy.copy(model) if body.model else model
        data = mujoco.MjData(episode_model)
        if body.model:
            _overwrite(episode_model, body.model)
            # C MuJoCo derives more from masses when it loads a model, e.g. inertia of free bodies
            mujoco.mj_setConst(episode_model, data)
            _overwrite(episode_model, body.model)
        data.qpos[:] = body.qpos
        data.qvel[:] = body.qvel
        return episode_model, data

    def step_on_host(body: Body, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        episode_model, data = model_and_data(body)
        data.ctrl[:] = control
        mujoco.mj_step(episode_model, data, nstep=substeps)
        return data.qpos.astype(np.float32), data.qvel.astype(np.float32)

    def frames_on_host(body: Body) -> Frames:
        episode_model, data = model_and_data(body)
        mujoco.mj_kinematics(episode_model, data)
        flat = Frames(*(getattr(data, name).astype(np.float32) for name in Frames._fields))
        return flat._replace(
            xmat=flat.xmat.reshape(-1, 3, 3), site_xmat=flat.site_xmat.reshape(-1, 3, 3)
        )

    at_start = frames_on_host(Body(jnp.asarray(model.qpos0), jnp.zeros(model.nv)))
    frames_shape = _shapes(at_start)

    def step(body: Body, control: Array) -> Body:
        shape = _shapes((body.qpos, body.qvel))
        qpos, qvel = jax.pure_callback(step_on_host, shape, body, control, vmap_method="sequential")
        return body._replace(qpos=qpos, qvel=qvel)

    def frames(body: Body) -> Frames:
        out: Frames = jax.pure_callback(
            frames_on_host, frames_shape, body, vmap_method="sequential"
        )
        return out

    return step, frames


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _overwrite(model: mujoco.MjModel, fields: dict[str, Array]) -> None:
    for name, values in fields.items():
        getattr(model, name)[:] = values


def at_rest(qpos: Array, nv: int) -> Body:
    """A body at ``qpos`` [nq] whose ``nv`` velocities are zero."""
    return Body(qpos, jnp.zeros(nv))


def _on_host(tree: Any) -> Any:
    """Arrays as numpy: MJX commits its own to one device, which sharded programs refuse."""
    return jax.tree.map(np.asarray, tree)
