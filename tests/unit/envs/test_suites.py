"""Environments of brax and of MuJoCo Playground against those suites themselves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.acme import running_statistics
from brax.training.agents.ppo import networks as ppo_networks

from gcp_jax import envs
from gcp_jax.envs.check import check_env
from gcp_jax.envs.protocol import NO_SUCCESS, State
from gcp_jax.envs.suites import brax

pytestmark = [  # of theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Brax System"),
]

ENVS = ("brax:inverted_pendulum", "playground:CartpoleSwingup")


@pytest.fixture(scope="module", params=ENVS)
def adapted(request):
    return envs.make(request.param, horizon=40)


@pytest.mark.slow
def test_contracts(adapted):
    check_env(adapted, jax.random.key(0), n=2, steps=50)


def test_specs_are_those_of_the_suite(adapted):
    specs = adapted.specs
    assert (
        specs.horizon == 40
        and specs.success == NO_SUCCESS
        and specs.by_return
        and 0.005 < specs.control_dt < 0.05
    )


def test_nothing_empty_is_carried_and_no_type_changes(adapted):
    """Otherwise the second call of a compiled step compiles again."""
    start = jax.eval_shape(adapted.reset, jax.random.key(0))
    after = jax.eval_shape(
        adapted.step, start, jax.ShapeDtypeStruct((adapted.specs.action_dim,), jnp.float32)
    )
    assert all(leaf.size for leaf in jax.tree.leaves(start))
    kinds = [
        [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]
        for state in (start, after)
    ]
    assert kinds[0] == kinds[1]


def test_the_renderer_gets_the_joint_positions(adapted):
    scene = adapted.scene()
    qpos = scene.pose(jax.device_get(jax.jit(adapted.reset)(jax.random.key(0))))["qpos"]
    cameras = [scene.model.camera(i).name for i in range(scene.model.ncam)]
    assert qpos.shape == (scene.model.nq,) and scene.camera in (cameras or [""])


@pytest.mark.slow
def test_rewards_and_observations_are_the_suites_own():
    from mujoco_playground import dm_control_suite

    env = envs.make("playground:CartpoleSwingup")
    own = dm_control_suite.load("CartpoleSwingup", config_overrides={"impl": "jax"})
    key = jax.random.key(3)
    with jax.numpy_rank_promotion("allow"):
        theirs = jax.jit(own.reset)(jax.random.split(key)[0])
    state, step, their_step = jax.jit(env.reset)(key), jax.jit(env.step), jax.jit(own.step)
    for t in range(5):
        action = jnp.full(1, 0.5 - 0.2 * t)
        state = step(state, action)
        with jax.numpy_rank_promotion("allow"):
            theirs = their_step(theirs, action)
        np.testing.assert_allclose(state.obs, theirs.obs, atol=1e-5)
        np.testing.assert_allclose(state.reward, theirs.reward, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("brax:spider", "brax has no environment 'spider'; allowed: .*hopper"),
        (
            "playground:Spider",
            "dm_control suite has no environment 'Spider'; allowed: .*CheetahRun",
        ),
        ("gym:Hopper", "no suite is called 'gym'; allowed: brax, playground"),
        ("hoper", "no environment is called 'hoper'"),
    ],
)
def test_a_name_that_is_not_there_is_refused(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        envs.make(name)


def test_a_suite_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "brax.envs", None)
    monkeypatch.setitem(__import__("sys").modules, "mujoco_playground", None)
    for name, extra in (("brax:ant", "brax"), ("playground:CheetahRun", "playground")):
        with pytest.raises(ImportError, match=rf'pip install "gcp-jax\[{extra}\]"'):
            envs.make(name)


def test_solver_iterations_of_brax_are_a_setting():
    env = envs.make("brax:inverted_pendulum", iterations=3, ls_iterations=5)
    other = envs.make("brax:inverted_pendulum")
    text = [
        str(
            jax.make_jaxpr(e.step)(
                jax.eval_shape(e.reset, jax.random.key(0)), jnp.zeros(1, jnp.float32)
            )
        )
        for e in (env, other)
    ]
    assert text[0] != text[1]
    options = env.scene().physics.opt
    assert (options.iterations, options.ls_iterations) == (3, 5)


@pytest.mark.parametrize("name", sorted(brax.QUALITY))
def test_the_shipped_policies_act_as_brax_does(name):
    with np.load(brax.parameters_file(name)) as archive:
        parameters = dict(archive)
    layers = len(parameters) // 2 - 1
    widths = [parameters[f"bias_{i}"].size for i in range(layers)]
    networks = ppo_networks.make_ppo_networks(
        parameters["mean"].size,
        widths[-1] // 2,
        preprocess_observations_fn=running_statistics.normalize,
        policy_hidden_layer_sizes=widths[:-1],
    )
    own = {
        f"hidden_{i}": {"kernel": parameters[f"kernel_{i}"], "bias": parameters[f"bias_{i}"]}
        for i in range(layers)
    }
    normalizer = running_statistics.NestedMeanStd(parameters["mean"], parameters["std"])
    obs = parameters["mean"] + parameters["std"] * jax.random.normal(
        jax.random.key(0), parameters["mean"].shape
    )
    policy = ppo_networks.make_inference_fn(networks)(
        (normalizer, {"params": own}), deterministic=True
    )
    with jax.numpy_rank_promotion("allow"):
        expected, _ = policy(obs, jax.random.key(1))
    demonstrator = brax.demonstrator(name, 0.0)
    no = jnp.zeros((), bool)
    state = State(None, obs, no, no, no, no, no, jnp.zeros((), jnp.int32), jax.random.key(2))
    action, _ = demonstrator.act(
        demonstrator.init(jax.random.key(3), state), state, jax.random.key(4)
    )
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert brax.parameters_file(name).stat().st_size < 100_000


class Joints(NamedTuple):
    """As much of a pipeline state as is looked at."""

    q: jax.Array
    qd: jax.Array


class Adds:
    """Two numbers that the action is added to."""

    def step(self, state, action):
        q = state.pipeline_state.q + action
        return state.replace(
            pipeline_state=state.pipeline_state._replace(q=q), obs=q, reward=jnp.sum(q)
        )


@pytest.mark.parametrize("far", [jnp.nan, jnp.inf, 2e4])
def test_training_a_demonstrator_ends_an_episode_that_diverges_where_it_was_finite(far):
    from brax.envs.base import State as BraxState

    from gcp_jax.experiments import brax_demonstrators

    guarded = brax_demonstrators.Guarded(Adds())
    start = BraxState(
        Joints(jnp.zeros(2), jnp.zeros(2)), jnp.zeros(2), jnp.float32(0), jnp.float32(0)
    )
    state = guarded.step(start, jnp.array([1.0, 2.0]))
    assert (state.done, state.reward) == (0.0, 3.0)
    state = guarded.step(state, jnp.array([0.0, far]))
    assert (state.done, state.reward) == (1.0, 0.0)
    np.testing.assert_array_equal(state.obs, [1.0, 2.0])
    np.testing.assert_array_equal(state.pipeline_state.q, [1.0, 2.0])
