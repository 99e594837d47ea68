"""The contract of a task's scene: what a renderer needs of it."""

from __future__ import annotations

from typing import Any

import jax
import mujoco
import numpy as np

from gcp_jax import contracts
from gcp_jax.contracts import require
from gcp_jax.envs.protocol import Env, Scene, State
from gcp_jax.envs.rendering import render

WIDTH, HEIGHT = 64, 48  # of the picture that is drawn


def check_scene(env: Env, states: State) -> str:
    """Check the scene of a task, and draw one picture if one can be drawn here.

    Args:
      env: a task with a scene.
      states: leaves [1, ...].

    Returns:
      What was seen.

    Raises:
      ContractError: the camera does not exist, a pose does not fit the model, or drawing fails.
    """
    assert env.scene is not None
    scene = contracts.call("scene", env.scene)
    require(isinstance(scene, Scene), f"scene returns a {type(scene).__name__}, must be a Scene")
    cameras = [scene.model.camera(index).name for index in range(scene.model.ncam)]
    require(
        not scene.camera or scene.camera in cameras,
        f"scene().camera is {scene.camera!r}, which the model does not have; allowed: "
        f"{', '.join(filter(None, cameras)) or 'none is named'}, or '' for MuJoCo's free camera",
    )
    _check_pose(scene, states)
    seen = f"camera {scene.camera or 'free'!r}"
    try:
        pictures = render.frames(env, states, width=WIDTH, height=HEIGHT)
    except render.RenderingUnavailable as error:
        return f"{seen}; not drawn: {error}"
    except RuntimeError as error:
        raise contracts.ContractError(str(error)) from error
    return f"{seen}; drawn {list(pictures.shape)}"


def _check_pose(scene: Scene, states: State) -> None:
    """Every field of a pose is one of MjData, of its shape, and finite."""
    host = jax.tree.map(lambda x: contracts.as_numpy(x)[0], states)
    pose: Any = contracts.call("scene().pose", scene.pose, host)
    require(isinstance(pose, dict), f"scene().pose returns a {type(pose).__name__}, must be a dict")
    data = mujoco.MjData(scene.model)
    for field, value in pose.items():
        require(
            hasattr(data, field), f"scene().pose sets {field!r}, which is no field of mujoco.MjData"
        )
        shape, wanted = np.shape(value), getattr(data, field).shape
        require(
            shape == wanted,
            f"scene().pose sets {field!r} to the shape {list(shape)}, must be {list(wanted)}",
        )
        require(np.isfinite(value), f"scene().pose sets {field!r} to NaN or infinity")
