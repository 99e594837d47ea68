"""Eight virtual CPU devices, strict ranks, a compilation cache that outlives the run, and fixtures
that several modules share.
"""

import os
from pathlib import Path
from typing import NamedTuple

from coverage import Coverage
from helpers.runs import QUICK_COMPILATION

XLA_FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()
# The size of XLA's thread pool: collectives of virtual devices deadlock in a smaller one.
os.environ["NPROC"] = "4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import AxisType, Mesh  # noqa: E402

from gcp_jax.algorithms import bc  # noqa: E402
from gcp_jax.core import policy as policy_lib  # noqa: E402
from gcp_jax.core.demonstrations import demonstrations_of  # noqa: E402
from gcp_jax.core.networks import Normalizer  # noqa: E402
from gcp_jax.core.policy import Policy, PolicyConfig  # noqa: E402
from gcp_jax.learner import batch_sources, loop  # noqa: E402
from gcp_jax.types import Specs, Step  # noqa: E402

pytest.register_assert_rewrite("helpers.off_policy", "helpers.by_hand", "helpers.ogpo_by_hand")

# Workers take files in this order, so that no worker is left alone with a long file at the end.
LONGEST_FIRST = (
    "test_envs",
    "test_kill_and_resume",
    "test_learning",
    "test_bytes",
    "test_dppo",
    "test_docs",
    "test_gpu_benchmark",
    "test_launcher",
    "test_population",
    "test_method_trial",
    "test_loop",
    "test_ogpo_config",
    "test_ogpo",
    "test_method_check",
    "test_training",
    "test_notebook",
    "test_nonfinite_runs",
    "test_suites",
    "test_benchmark",
    "test_expo",
    "test_fql",
    "test_dsrl",
)
DEFAULT_CACHE = Path.home() / ".cache" / "gcp-jax" / "tests"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("GCP_JAX_TEST_CACHE", str(DEFAULT_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """Sort the longest files to the front."""

    def rank(item):
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Measure coverage in the everyday tests only; it takes a third of the time of a test that
    traces.
    """
    measuring = Coverage.current()
    is_everyday = not any(item.get_closest_marker(name) for name in ("slow", "process", "cluster"))
    if measuring is None or is_everyday:
        return (yield)
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()


@pytest.fixture(scope="session")
def optimized():
    """Compiler options for programs that run for seconds: the flags above would cost more than they
    save.
    """
    return {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(scope="session")
def devices():
    """Build a mesh of exactly ``seed`` × ``data`` devices."""

    def build(*, seed: int = 1, data: int = 1) -> Mesh:
        grid = np.asarray(jax.devices()[: seed * data]).reshape(seed, data)
        return Mesh(grid, ("seed", "data"), axis_types=(AxisType.Auto, AxisType.Auto))

    return build


class TwoModes(NamedTuple):
    """A policy of one number, cloned from a mixture of N(±mode, std²) in equal parts."""

    policy: Policy
    deployed: dict
    mode: float
    std: float


@pytest.fixture(scope="session")
def two_modes(devices, optimized):
    """Clone two modes under one observation: only a policy that keeps both can fit them."""
    mode = 0.6
    std = 0.1
    episodes = 2048
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (1, episodes, 1))
    action = mode * signs + std * rng.standard_normal((1, episodes, 1))
    obs = np.zeros((1, episodes, 1), np.float32)
    yes = np.ones((1, episodes), bool)
    steps = Step(
        obs=obs,
        action=action.astype(np.float32),
        reward=np.zeros((1, episodes), np.float32),
        next_obs=obs,
        terminated=yes,
        truncated=~yes,
        success=yes,
        executed=yes,
    )
    specs = Specs(obs_dim=1, action_dim=1, chunk=1)
    policy = policy_lib.make_policy(PolicyConfig(chunk=1, hidden=(64, 64, 64), steps=10), specs)
    source = batch_sources.dataset(
        demonstrations_of(steps), chunk=1, batch_size=256, updates=1000, gamma=1.0
    )
    algorithm = bc.make(bc.Config(learning_rate=5e-3), policy, source)
    learner = loop.build_learner(algorithm, specs, mesh=devices(), seeds=1)
    pretrained = {"normalizer": Normalizer(mean=jnp.zeros(1), std=jnp.ones(1))}
    train = learner.init(jnp.arange(1), pretrained)
    train, _ = learner.compile(train, optimized).segment(train)
    deployed = algorithm.export(jax.tree.map(lambda x: x[0], train.learner.state))
    return TwoModes(policy=policy, deployed=deployed, mode=mode, std=std)
