"""Importing MuJoCo on machines where its OpenGL library cannot be loaded.

MuJoCo loads the library that MUJOCO_GL names when it is first imported, and fails if it is not
there. Physics needs none, and pictures are drawn in a child process (``rendering.worker``), which
says what is missing. MuJoCo is therefore imported without OpenGL, and given it afterwards, for a
user's own code, if it can be loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys


def import_mujoco() -> None:
    """Import MuJoCo, with OpenGL if the library that MUJOCO_GL names can be loaded."""
    if "mujoco" in sys.modules:
        return
    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        import mujoco
    finally:
        _restore("MUJOCO_GL", chosen)
    with contextlib.suppress(Exception):  # whatever a missing library raises, by whichever binding
        opengl = importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
        importlib.reload(importlib.import_module("mujoco.gl_context"))
        mujoco.GLContext = opengl.GLContext


def _restore(name: str, value: str | None) -> None:
    """Give an environment variable the value that it had; None: it was not set."""
    if value is None:
        os.environ.pop(name, None)
        return
    os.environ[name] = value
