"""Eight virtual CPU devices, strict ranks and a compilation cache that outlives the run; fixtures that modules share."""

import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

from coverage import Coverage

JAX = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])
XLA_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # with the next two, a third of the compile time; tests compile more than they run
    "--xla_cpu_parallel_codegen_split_count=1",  # the other core runs tests of its own
    *(
        ["--xla_cpu_use_fusion_emitters=false"] if JAX < (0, 11) else []
    ),  # an unknown flag aborts the process
]
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS)).strip()
os.environ["NPROC"] = (
    "4"  # the size of XLA's thread pool: collectives of virtual devices deadlock in a smaller one
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import AxisType, Mesh  # noqa: E402

from gcp_jax.algorithms import bc  # noqa: E402
from gcp_jax.core import policy as policy_lib  # noqa: E402
from gcp_jax.core.networks import Normalizer  # noqa: E402
from gcp_jax.core.policy import Policy, PolicyConfig  # noqa: E402
from gcp_jax.learner import batch_sources, loop  # noqa: E402
from gcp_jax.types import Specs, Step  # noqa: E402

pytest.register_assert_rewrite("helpers.off_policy", "helpers.by_hand")

LONGEST = (
    "test_envs",
    "test_kill_and_resume",
    "test_learning",
    "test_launcher",
    "test_bytes",
    "test_population",
    "test_docs",
    "test_ogpo",
)
DEFAULT_CACHE = Path.home() / ".cache" / "gcp-jax" / "tests"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("GCP_JAX_TEST_CACHE", str(DEFAULT_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """The longest files first: workers take files in this order, and none should be left alone with one at the end."""
    items.sort(
        key=lambda item: (
            LONGEST.index(name) if (name := item.path.stem) in LONGEST else len(LONGEST)
        )
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """``unmeasured``: without coverage here and in processes that the test starts, fixtures included."""
    measuring = Coverage.current()
    if measuring is None or item.get_closest_marker("unmeasured") is None:
        return (yield)
    measuring.stop()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
                patch.delenv(name)
            return (yield)
    finally:
        measuring.start()


@pytest.fixture(scope="session")
def optimized():
    """Compiler options for a program that runs for seconds, where the flags above would cost more than they save."""
    return {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(scope="session")
def devices():
    """Build a mesh of exactly ``seed`` × ``data`` devices."""

    def build(*, seed: int = 1, data: int = 1) -> Mesh:
        grid = np.asarray(jax.devices()[: seed * data]).reshape(seed, data)
        return Mesh(grid, ("seed", "data"), axis_types=(AxisType.Auto, AxisType.Auto))

    return build


class TwoModes(NamedTuple):
    """A policy of one number, cloned through the compiled loop from a mixture of N(±mode, std²) in equal parts."""

    policy: Policy
    deployed: dict
    mode: float
    std: float


@pytest.fixture(scope="session")
def two_modes(devices, optimized):
    """Two modes under one constant observation: only a policy that keeps both can fit them."""
    mode, std, episodes = 0.6, 0.1, 2048
    rng = np.random.default_rng(0)
    action = mode * rng.choice([-1.0, 1.0], (1, episodes, 1)) + std * rng.standard_normal(
        (1, episodes, 1)
    )
    obs, reward, yes = (
        np.zeros((1, episodes, 1), np.float32),
        np.zeros((1, episodes), np.float32),
        np.ones((1, episodes), bool),
    )
    steps = Step(obs, action.astype(np.float32), reward, obs, yes, ~yes, yes, yes)
    specs = Specs(obs_dim=1, action_dim=1, chunk=1)
    policy = policy_lib.make_policy(PolicyConfig(chunk=1, hidden=(64, 64, 64), steps=10), specs)
    source = batch_sources.dataset(
        batch_sources.chunk_windows(steps, 1), batch_size=256, updates=1000, gamma=1.0
    )
    algorithm = bc.make(bc.Config(learning_rate=5e-3), policy, source)
    cloning = loop.build_learner(algorithm, specs, mesh=devices(), seeds=1)
    train = cloning.init(jnp.arange(1), {"normalizer": Normalizer(jnp.zeros(1), jnp.ones(1))})
    train, _ = cloning.compile(train, optimized).segment(train)
    return TwoModes(policy, algorithm.export(jax.tree.map(lambda x: x[0], train.learner.state)), mode, std)
