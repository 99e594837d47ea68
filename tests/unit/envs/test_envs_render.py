"""Rendering without a display: pictures show the scene; a missing library gives one line."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.rendering.render import RenderingUnavailable, frames, video
from gcp_jax.experiments import assemble


@pytest.fixture(scope="module")
def env():
    """The peg task, not simulated here."""
    return envs.make("peg_insert")


@pytest.fixture(scope="module")
def states(env):
    """Two starts as a trajectory, leaves [2, ...]."""
    return jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))


@pytest.fixture(scope="module")
def pictures(env, states):
    """Two frames; skipped where no OpenGL library is installed."""
    try:
        return frames(env, states, width=96, height=64)
    except RenderingUnavailable as error:
        pytest.skip(str(error))


def test_frames_are_pictures_of_what_moves(pictures):
    assert pictures.shape == (2, 64, 96, 3) and pictures.dtype == np.uint8
    assert pictures.std() > 10.0
    assert (pictures[0] != pictures[1]).any()


def test_video_is_written(pictures, tmp_path):
    video(tmp_path / "peg.mp4", pictures, fps=10)
    assert (tmp_path / "peg.mp4").stat().st_size > 0


def test_a_png_shows_each_episode_half_way(env, states, pictures, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "gcp_jax.envs.rendering.render.frames",
        lambda env, states, **size: drawn.append(states.physics.body.qpos) or pictures[:1],
    )
    film = jax.tree.map(
        lambda x: x[:, None], states._replace(time=np.array([1, 2]), key=states.time)
    )
    assemble.write_video(env, film, tmp_path / "peg.png")
    assert (tmp_path / "peg.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(drawn[0], states.physics.body.qpos[1:])


def test_missing_opengl_names_the_package(env, states, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "none")
    with pytest.raises(
        RenderingUnavailable,
        match=r"tried none\): apt-get install libegl1 libgl1-mesa-dri, or .*libosmesa6$",
    ):
        frames(env, states)


def test_task_without_scene_is_refused(env, states):
    with pytest.raises(ValueError, match="'peg_insert' has no scene"):
        frames(env._replace(scene=None), states)


@pytest.mark.process
@pytest.mark.parametrize("value", ["osmesa", "egl", "glfw", "none", "disable", ""])
def test_tasks_work_whatever_opengl_library_is_named(value):
    """Also if it is not installed, or is none that MuJoCo knows; the variable keeps its value."""
    program = (
        "import os, jax\n"
        "from gcp_jax import envs\n"
        "env = envs.make('peg_insert')\n"
        "print(jax.eval_shape(env.reset, jax.random.key(0)).obs.shape, os.environ['MUJOCO_GL'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MUJOCO_GL": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"(13,) {value}".strip()
