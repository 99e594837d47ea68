"""Rendering without a display: pictures show the scene; a missing library gives one line."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.rendering.render import RenderingUnavailable, SceneError, frames, video
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


@pytest.mark.parametrize(("name", "at", "magic"), [("peg.mp4", 4, b"ftyp"), ("peg.gif", 0, b"GIF")])
def test_video_is_written(name, at, magic, pictures, tmp_path):
    video(tmp_path / name, pictures, fps=10)
    assert (tmp_path / name).read_bytes()[at:].startswith(magic)


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
        match=r"tried MUJOCO_GL=none\): apt-get install libegl1 .* libosmesa6; unset MUJOCO_GL",
    ):
        frames(env, states)


def test_task_without_scene_is_refused(env, states):
    with pytest.raises(ValueError, match="'peg_insert' has no scene"):
        frames(env._replace(scene=None), states)


def test_no_display_is_no_library(env, states, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(
        RenderingUnavailable, match=r"MUJOCO_GL=glfw.*unset MUJOCO_GL to try"
    ) as one:
        frames(env, states)
    assert "\n" not in str(one.value)


def with_scene(env, **changes):
    scene = env.scene()._replace(**changes)
    return env._replace(scene=lambda: scene)


def test_a_camera_that_is_not_there_is_named_with_those_that_are(env, states):
    message = r"the scene of peg_insert names the camera 'front', but its model has 'main'"
    with pytest.raises(SceneError, match=message):
        frames(with_scene(env, camera="front"), states)


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ({"qposs": np.zeros(3)}, "its pose gives 'qposs': .* has no attribute 'qposs'"),
        ({"qpos": np.zeros(99)}, "its pose gives 'qpos': could not broadcast"),
    ],
)
def test_a_pose_that_does_not_fit_is_named(env, states, pictures, pose, words):
    with pytest.raises(SceneError, match=f"scene of peg_insert does not fit its model: {words}"):
        frames(with_scene(env, pose=lambda state: pose), states)


def test_a_film_that_fails_is_said_once_and_stops_nothing(env, states, tmp_path, capsys):
    def pose(state):
        raise ZeroDivisionError("division by zero")

    film = jax.tree.map(lambda x: x[:, None], states._replace(key=states.time))
    for changes, words in [
        ({"camera": "front"}, "names the camera 'front'"),
        ({"pose": pose}, "ZeroDivisionError: division by zero"),
    ]:
        camera = assemble.Camera(with_scene(env, **changes))
        for name in ("before", "after"):
            camera.film(film, tmp_path / "report" / f"{name}.mp4")
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == 1 and shown[0].startswith("no video: ") and words in shown[0]
        assert words in (tmp_path / "report" / "video.txt").read_text()
        assert not list(tmp_path.glob("report/*.mp4"))


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
