"""MJX is imported when a scene is first made, with Warp only where there is a CUDA device."""

import ast
import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def imported(code: str) -> set[str]:
    """Which of MJX and Warp a new process has imported after ``code``."""
    show = "print([name for name in ('mujoco.mjx', 'warp') if name in sys.modules])"
    program = f"import sys\n{code}\n{show}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, lines  # MJX prints why it has no Warp
    return set(ast.literal_eval(lines[0]))


def test_the_command_line_imports_no_mjx():
    assert imported("import gcp_jax.launch.cli.train") == set()


def test_a_scene_imports_mjx_and_no_warp_without_a_cuda_device():
    code = "from gcp_jax import envs\nenvs.make('push_t')"
    assert imported(code) == {"mujoco.mjx"}


@pytest.mark.skipif(importlib.util.find_spec("warp") is None, reason="Warp is not installed")
def test_a_cuda_device_or_a_program_that_uses_warp_gets_it():
    load = "from gcp_jax.envs.physics import mjx\n"
    with_device = load + "mjx._has_cuda = lambda: True\nmjx.load_mjx()"
    assert imported(with_device) == {"mujoco.mjx", "warp"}
    already = f"import warp\n{load}mjx.load_mjx()\nassert sys.modules['warp'] is warp"
    assert imported(already) == {"mujoco.mjx", "warp"}
