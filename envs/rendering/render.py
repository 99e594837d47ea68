"""Pictures and videos of a task's states, without a display. Host side only.

MuJoCo chooses its OpenGL library once, at its first import, from MUJOCO_GL. Drawing therefore runs
in a child process (``rendering.worker``) that is started with the right one; the caller's process
is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import mujoco
import numpy as np

from gcp_jax.contracts import as_numpy
from gcp_jax.envs.protocol import Env, Scene, State
from gcp_jax.envs.rendering import worker

BACKENDS = ("egl", "osmesa")  # tried in this order if MUJOCO_GL is unset


class RenderingUnavailable(RuntimeError):
    """No OpenGL library, or nothing to encode a video with; the message names what to install."""


class SceneError(ValueError):
    """A task's scene cannot be drawn; the message says what is wrong with it."""


def frames(env: Env, states: State, *, width: int = 480, height: int = 360) -> np.ndarray:
    """Draw ``states`` (leaves [T, ...]) as uint8 [T, height, width, 3].

    Raises:
      SceneError: if the task has no scene, or one that does not fit its model.
      RenderingUnavailable: if no OpenGL library is found, or none can draw here.
    """
    if env.scene is None:
        raise SceneError(f"environment {env.specs.name!r} has no scene to draw; give its Env one")
    scene = env.scene()
    check_camera(env.specs.name, scene)
    with tempfile.TemporaryDirectory() as folder:
        model, poses, drawn = (
            Path(folder, name) for name in ("model.mjb", "poses.npz", "frames.npy")
        )
        mujoco.mj_saveModel(scene.model, str(model))
        np.savez(poses, allow_pickle=False, **_poses(scene, states))
        arguments = [str(model), str(poses), str(drawn), scene.camera, str(width), str(height)]
        _draw(env.specs.name, arguments)
        pictures: np.ndarray = np.load(drawn)
        return pictures


def check_camera(task: str, scene: Scene) -> None:
    """Raise SceneError if a scene names a camera that its model lacks; "" is the free camera."""
    cameras = [scene.model.camera(index).name for index in range(scene.model.ncam)]
    if scene.camera and scene.camera not in cameras:
        raise SceneError(
            f"the scene of {task} names the camera {scene.camera!r}, but its model has "
            f"{', '.join(map(repr, cameras)) or 'none'}; '' is MuJoCo's free camera"
        )


def _poses(scene: Scene, states: State) -> dict[str, np.ndarray]:
    """The MjData fields of each drawn state, stacked."""
    states = jax.tree.map(as_numpy, states)
    count = len(states.time)
    poses = [scene.pose(jax.tree.map(lambda x, t=t: x[t], states)) for t in range(count)]
    return {field: np.stack([pose[field] for pose in poses]) for field in poses[0]}


def _draw(task: str, arguments: list[str]) -> None:
    """Run the child with the first OpenGL library that works.

    If MUJOCO_GL is set, only that one is tried.
    """
    chosen = os.environ.get("MUJOCO_GL")
    failure = "no OpenGL library without a display"
    for backend in (chosen,) if chosen else BACKENDS:
        command = [sys.executable, worker.__file__, *arguments]
        done = subprocess.run(
            command, env=os.environ | {"MUJOCO_GL": backend}, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode == worker.BAD_POSE:
            raise SceneError(f"the scene of {task} does not fit its model: {last_line}")
        if done.returncode > 0 and done.returncode != worker.NO_OPENGL:
            failure = f"drawing failed with MUJOCO_GL={backend}: {last_line}"
    tried = f"MUJOCO_GL={chosen}" if chosen else ", ".join(BACKENDS)
    raise RenderingUnavailable(
        f"{failure} (tried {tried}): "
        "apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6"
        + ("; unset MUJOCO_GL to try them" if chosen else "")
    )


def picture(path: str | Path, pixels: np.ndarray) -> None:
    """Write ``pixels`` uint8 [height, width, 3] as a picture."""
    import mediapy

    mediapy.write_image(str(path), pixels)


def video(path: str | Path, pictures: np.ndarray, fps: float) -> None:
    """Write ``pictures`` uint8 [T, height, width, 3] as a video, H.264 or, in a ``.gif``, GIF.

    Raises:
      RenderingUnavailable: without ffmpeg.
    """
    import mediapy

    mediapy.set_ffmpeg(_ffmpeg())
    absolute = str(Path(path).absolute())  # ffmpeg takes "a:b" for a protocol and "-a" for a flag
    codec = "gif" if absolute.endswith(".gif") else "h264"
    mediapy.write_video(absolute, pictures, fps=fps, codec=codec)


def _ffmpeg() -> str:
    """The system's ffmpeg, or the one a wheel brings."""
    system_ffmpeg = shutil.which("ffmpeg")
    if system_ffmpeg:
        return system_ffmpeg
    try:
        import imageio_ffmpeg
    except ImportError:
        raise RenderingUnavailable(
            "no ffmpeg to write a video with: pip install imageio-ffmpeg"
        ) from None
    ffmpeg: str = imageio_ffmpeg.get_ffmpeg_exe()
    return ffmpeg
