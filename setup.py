"""Packaging of gcp-jax."""

from pathlib import Path

from setuptools import find_packages, setup

BRAX = ["brax>=0.14"]
PLAYGROUND = ["playground>=0.2"]
RAY = ["ray>=2.40"]
SLURM = ["submitit>=1.5"]
SEARCH = ["optuna>=4.1"]
ROBOTS = ["gymnasium-robotics>=1.4", "ogbench>=1.2"]  # for the models that they ship
TEST = [
    "pytest",
    "pytest-cov",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "mypy",
    "hypothesis",
    "tensorboardX",
    *BRAX,
    *PLAYGROUND,
    *ROBOTS,
    *RAY,
    *SLURM,
    *SEARCH,
]

setup(
    name="gcp-jax",
    version="0.1.0",
    description="Finetune generative control policies with reinforcement learning, in JAX on MJX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gcp_jax", "gcp_jax.*"]),
    package_data={
        "gcp_jax": ["py.typed"],
        "gcp_jax.envs": ["assets/*.npz", "measured.json"],
        "gcp_jax.launch": ["*.yaml"],
        "gcp_jax.report": ["templates/*"],
    },
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12,<0.13",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "mujoco>=3.17,<3.18",
        "mujoco-mjx>=3.17,<3.18",
        "ml-collections>=1.1",
        "absl-py>=2",
        "numpy>=2",
        "scipy>=1.14",
        "matplotlib>=3.9",
        "rich>=13",
        "mediapy>=1.2",
        "imageio-ffmpeg>=0.5",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10,<0.12"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "brax": BRAX,
        "playground": PLAYGROUND,
        "robots": ROBOTS,
        "ray": RAY,
        "slurm": SLURM,
        "search": SEARCH,
        "tensorboard": ["tensorboardX"],
        "wandb": ["wandb"],
        "test": TEST,
    },
    entry_points={"console_scripts": ["gcp-jax=gcp_jax.launch.cli.main:main"]},
)
