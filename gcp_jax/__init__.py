"""Reinforcement-learning finetuning of generative control policies, in JAX on MJX.

The names in ``__all__`` are the Python API; they are imported when first used, so that
``import gcp_jax`` is quick. The sub-packages, from the bottom to the top:

core         the maths: policies, critics, samplers, returns; no loops
algorithms   one file a method
learner      the compiled loop: collecting, replay, updates, evaluation
run          the host side of one run: folder, checkpoints, metrics
stats        intervals and tests
report       pages and figures from run folders
envs         environments and demonstrations
experiments  configurations, and what puts a run together
launch       the command line and sweeps
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gcp_jax.lazy_names import lazy_names

if TYPE_CHECKING:
    from gcp_jax.config import ConfigError, RunConfig
    from gcp_jax.core.policy import Policy, PolicyConfig
    from gcp_jax.envs.protocol import Env
    from gcp_jax.experiments.api import (
        LoadedPolicy,
        evaluate,
        load_policy,
        make_config,
        make_env,
        train,
    )
    from gcp_jax.launch.spec import Halving, Search, Sweep
    from gcp_jax.run.saved_policy import SavedPolicyError
    from gcp_jax.types import Algorithm, Batch, BatchSource, Segment, Specs, Step, Transition

__version__ = "0.2.0"

__all__ = [
    "Algorithm",
    "Batch",
    "BatchSource",
    "ConfigError",
    "Env",
    "Halving",
    "LoadedPolicy",
    "Policy",
    "PolicyConfig",
    "RunConfig",
    "SavedPolicyError",
    "Search",
    "Segment",
    "Specs",
    "Step",
    "Sweep",
    "Transition",
    "__version__",
    "evaluate",
    "load_policy",
    "make_config",
    "make_env",
    "train",
]

_MODULES = {
    "gcp_jax.config": ("ConfigError", "RunConfig"),
    "gcp_jax.core.policy": ("Policy", "PolicyConfig"),
    "gcp_jax.envs.protocol": ("Env",),
    "gcp_jax.experiments.api": (
        "LoadedPolicy",
        "evaluate",
        "load_policy",
        "make_config",
        "make_env",
        "train",
    ),
    "gcp_jax.launch.spec": ("Halving", "Search", "Sweep"),
    "gcp_jax.run.saved_policy": ("SavedPolicyError",),
    "gcp_jax.types": (
        "Algorithm",
        "Batch",
        "BatchSource",
        "Segment",
        "Specs",
        "Step",
        "Transition",
    ),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
