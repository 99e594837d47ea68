"""The child process of ``rendering.render``: draws poses of a model to an array.

Run it as ``python worker.py MODEL.mjb POSES.npz FRAMES.npy CAMERA WIDTH HEIGHT`` with MUJOCO_GL
set. It needs only MuJoCo and numpy. It exits with NO_OPENGL if that library cannot make a context,
and with BAD_POSE if the poses do not fit the model; any other code but 0 is a failure to draw.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

NO_OPENGL = 3
BAD_POSE = 4


def draw(
    model_path: str, poses_path: str, frames_path: str, camera: str, width: int, height: int
) -> None:
    """Write frames as uint8 [T, height, width, 3].

    Every array of the poses is an MjData field with a leading [T].
    """
    import mujoco

    model = mujoco.MjModel.from_binary_path(model_path)
    data, poses = mujoco.MjData(model), dict(np.load(poses_path))
    with mujoco.Renderer(model, height, width) as renderer:
        frames = np.empty((len(next(iter(poses.values()))), height, width, 3), np.uint8)
        for t, frame in enumerate(frames):
            for field, values in poses.items():
                _set_field(data, field, values[t])
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera or -1)  # −1: MuJoCo's free camera
            renderer.render(out=frame)
    np.save(frames_path, frames)


def _set_field(data: Any, field: str, values: Any) -> None:
    try:
        getattr(data, field)[:] = values
    except (AttributeError, ValueError, TypeError) as error:
        print(f"its pose gives {field!r}: {error}", file=sys.stderr)
        sys.exit(BAD_POSE)


def _has_opengl() -> bool:
    """True if the OpenGL library named by MUJOCO_GL makes a context here."""
    try:
        import mujoco

        context = mujoco.GLContext(16, 16)
        context.make_current()
        context.free()
    except Exception as error:  # whatever a missing library raises, by whichever binding
        print(error, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    if not _has_opengl():
        sys.exit(NO_OPENGL)
    model, poses, frames, camera, width, height = sys.argv[1:]
    draw(model, poses, frames, camera, int(width), int(height))
