"""Simulation shared by the tasks: MJX scenes and control steps (``mjx``), and the pieces of reset,
step and demonstrator that do not depend on the robot (``common``). Robots belong in ``robots``, the
scene of one task in ``tasks``."""

from gcp_jax.envs.physics.opengl import import_mujoco

import_mujoco()  # before any module here, or elsewhere in envs, imports it
