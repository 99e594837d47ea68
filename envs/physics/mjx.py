"""MJX for tasks: the settings of every scene, and one control step that compiles a single physics step.

The solver runs one iteration with four line-search steps wherever that does: without a loop inside, no environment waits
for the slowest of the batch. It starts from the unconstrained acceleration every time: in float32 a single iteration from a warm start
drifts until a resting or grasped block is thrown away (64 of 64 grasps failed; without it 64 of 64 succeed).
A task carries a ``Body``; ``mjx.Data`` is rebuilt from a template in every step and never leaves it.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.extend.core import jaxpr_as_fun

with contextlib.redirect_stdout(
    io.StringIO()
):  # it announces that warp, which is not used, is not installed
    from mujoco import mjx

Array = jax.Array

TIMESTEP = 0.005  # seconds of one physics step
SUBSTEPS = 5  # physics steps of one control step
CONTROL_DT = TIMESTEP * SUBSTEPS  # seconds

_MJCF = """
<mujoco model="{name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" iterations="{iterations}" ls_iterations="4" integrator="Euler" gravity="{gravity}">
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
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".92 .94 .97" rgb2=".62 .70 .80" width="64" height="64"/>
    <texture name="tiles" type="2d" builtin="checker" rgb1=".80 .82 .85" rgb2=".74 .76 .80" width="256" height="256"/>
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
    """The moving parts: qpos [nq] and qvel [nv], float32; model: arrays of the ``mjx.Model`` that this episode has
    instead of the scene's, by field (``envs.randomize``)."""

    qpos: Array
    qvel: Array
    model: dict[str, Array] = {}


class Frames(NamedTuple):
    """Where everything is, in the world, metres: bodies xpos [nbody, 3] and xmat [nbody, 3, 3], geom_xpos [ngeom, 3],
    sites site_xpos [nsite, 3] and site_xmat [nsite, 3, 3]; joints xanchor and xaxis [njnt, 3]."""

    xpos: Array
    xmat: Array
    geom_xpos: Array
    site_xpos: Array
    site_xmat: Array
    xanchor: Array
    xaxis: Array


class Simulation(NamedTuple):
    """A compiled scene.

    model:  the MjModel, host side, for renderers and references
    step:   (Body, control [nu]) -> Body, one control step
    frames: (Body) -> Frames, forward kinematics
    dt:     seconds of one control step
    """

    model: mujoco.MjModel
    step: Callable[[Body, Array], Body]
    frames: Callable[[Body], Frames]
    dt: float


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
    """The MJCF of a task: its bodies, contact pairs and actuators in the settings all tasks share.

    ``gravity`` in m/s², positive downwards. Geoms touch only in the listed pairs. ``max_contact_points`` bounds the
    contacts of each kind of geom pair; −1 keeps them all. More than one of the solver's ``iterations`` is a loop that every
    environment of a batch waits in for the slowest.
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


def simulation(source: str | mujoco.MjModel, substeps: int = SUBSTEPS) -> Simulation:
    """Compile MJCF text or a model for MJX; a control step is ``substeps`` physics steps.

    Its functions are compiled of themselves: an environment can be played with outside of a program. Its arrays stay on
    the host until a program that uses them is compiled. Under ``in_c_mujoco`` the same functions run plain MuJoCo.
    """
    model = mujoco.MjModel.from_xml_string(source) if isinstance(source, str) else source
    step, frames = (_in_c if _C_MUJOCO else _in_mjx)(model, substeps)
    return Simulation(model, one_batch(step), one_batch(frames), substeps * model.opt.timestep)


def one_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled of itself, and any nesting of ``vmap`` over it as a single one.

    MJX is thousands of operations. JAX would batch them anew in every nested ``vmap``, and in loops for every guess at which parts
    of the carry are batched; this batches them once for each number of environments. Not differentiable in reverse.
    """
    once = traced_once(function)
    alone, batched = jax.jit(once), jax.jit(jax.vmap(once))
    one, many = jax.custom_batching.custom_vmap(alone), jax.custom_batching.custom_vmap(batched)

    def whole(size: int, mapped: Any, args: tuple[Any, ...]) -> Any:
        return jax.tree.map(
            lambda x, own: x if own else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(mapped)
        )

    @one.def_vmap
    def first(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        out = many(*whole(size, mapped, args))
        return out, jax.tree.map(lambda _: True, out)

    @many.def_vmap
    def further(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        flat = jax.tree.map(
            lambda x: x.reshape(size * x.shape[1], *x.shape[2:]), whole(size, mapped, args)
        )
        out = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), many(*flat))
        return out, jax.tree.map(lambda _: True, out)

    return one


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` by its jaxpr, which is made once for each shape of its arguments. JAX's own ``jit`` traces anew under every
    ``vmap`` and mesh, and Python takes seconds to go through a step of MJX."""
    known: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def evaluate(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        if (tree, shapes) not in known:
            with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
                jaxpr, out = jax.make_jaxpr(function, return_shape=True)(
                    *jax.tree.unflatten(tree, shapes)
                )
            known[tree, shapes] = jaxpr_as_fun(jaxpr), jax.tree.structure(out)
        run, out = known[tree, shapes]
        return jax.tree.unflatten(out, run(*leaves))

    return evaluate


def _in_mjx(model: mujoco.MjModel, substeps: int) -> tuple[Callable, Callable]:
    host_model, host_data = (
        _on_host(mjx.put_model(model, impl="jax")),
        _on_host(mjx.make_data(model, impl="jax")),
    )

    def placed(body: Body) -> tuple[Any, Any]:
        device_model, data = jax.tree.map(jnp.asarray, (host_model, host_data))
        return device_model.replace(**body.model), data.replace(qpos=body.qpos, qvel=body.qvel)

    def step(body: Body, control: Array) -> Body:
        device_model, template = placed(body)
        template = template.replace(ctrl=control)

        def substep(body: Body, _: None) -> tuple[Body, None]:
            data = template.replace(qpos=body.qpos, qvel=body.qvel)
            with jax.numpy_rank_promotion("allow"):
                data = mjx.step(device_model, data)
            return body._replace(qpos=data.qpos, qvel=data.qvel), None

        return jax.lax.scan(substep, body, None, length=substeps)[0]

    def frames(body: Body) -> Frames:
        with jax.numpy_rank_promotion("allow"):
            data = mjx.kinematics(*placed(body))
        return Frames(*(getattr(data, field) for field in Frames._fields))

    return step, frames


_C_MUJOCO = False


@contextlib.contextmanager
def in_c_mujoco() -> Iterator[None]:
    """Simulations made inside run plain MuJoCo by callbacks, one environment at a time: the reference for MJX."""
    global _C_MUJOCO
    before, _C_MUJOCO = _C_MUJOCO, True
    try:
        yield
    finally:
        _C_MUJOCO = before


def _in_c(model: mujoco.MjModel, substeps: int) -> tuple[Callable, Callable]:
    def data_of(body: Body) -> tuple[mujoco.MjModel, mujoco.MjData]:
        own = copy.copy(model) if body.model else model
        data = mujoco.MjData(own)
        if body.model:
            _overwrite(own, body.model)
            mujoco.mj_setConst(
                own, data
            )  # C MuJoCo derives more from masses on loading, as the inertia of free bodies
            _overwrite(own, body.model)
        data.qpos[:], data.qvel[:] = body.qpos, body.qvel
        return own, data

    def step_host(body: Body, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own, data = data_of(body)
        data.ctrl[:] = control
        mujoco.mj_step(own, data, nstep=substeps)
        return data.qpos.astype(np.float32), data.qvel.astype(np.float32)

    def frames_host(body: Body) -> Frames:
        own, data = data_of(body)
        mujoco.mj_kinematics(own, data)
        flat = Frames(*(getattr(data, field).astype(np.float32) for field in Frames._fields))
        return flat._replace(
            xmat=flat.xmat.reshape(-1, 3, 3), site_xmat=flat.site_xmat.reshape(-1, 3, 3)
        )

    at_start = frames_host(Body(jnp.asarray(model.qpos0), jnp.zeros(model.nv)))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), at_start)

    def step(body: Body, control: Array) -> Body:
        out = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (body.qpos, body.qvel))
        qpos, qvel = jax.pure_callback(step_host, out, body, control, vmap_method="sequential")
        return body._replace(qpos=qpos, qvel=qvel)

    def frames(body: Body) -> Frames:
        found: Frames = jax.pure_callback(frames_host, shapes, body, vmap_method="sequential")
        return found

    return step, frames


def _overwrite(model: mujoco.MjModel, fields: dict[str, Array]) -> None:
    for field, values in fields.items():
        getattr(model, field)[:] = values


def at_rest(qpos: Array, nv: int) -> Body:
    """A body at ``qpos`` [nq] that does not move; ``nv`` velocities."""
    return Body(qpos, jnp.zeros(nv))


def _on_host(tree: Any) -> Any:
    """Arrays as numpy: MJX commits its own to one device, which sharded programs refuse."""
    return jax.tree.map(np.asarray, tree)
