"""Domain randomization: what is drawn, its effect in MuJoCo and MJX, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.envs.randomize import Randomize, randomize_env

KEYS = jax.random.split(jax.random.key(0), 256)
PHYSICS = {"mass": 0.5, "friction": 0.4, "size": 0.1}


@pytest.fixture(scope="module")
def block():
    """pick_place in plain MuJoCo: a free block."""
    return envs.make("pick_place", backend="mujoco")


@pytest.fixture(scope="module")
def drawn(block):
    """The fields of the model that 256 resets drew."""
    env = randomize_env(block, Randomize(**PHYSICS))
    return jax.device_get(jax.vmap(lambda key: env.reset(key).physics.body.model)(KEYS))


def test_factors_are_uniform_within_their_range(block, drawn):
    model = block.scene().model
    body, geom = model.body("block").id, model.geom("block").id
    factors = {
        "mass": drawn["body_mass"][:, body] / model.body_mass[body],
        "friction": drawn["pair_friction"][:, 0, 0] / model.pair_friction[0, 0],
        "size": drawn["geom_size"][:, geom, 0] / model.geom_size[geom, 0],
    }
    for name, factor in factors.items():
        width = PHYSICS[name]
        assert 1 - width <= factor.min() < 1 - 0.9 * width
        assert 1 + 0.9 * width < factor.max() <= 1 + width + 1e-6
        assert abs(factor.mean() - 1) < 4 * width / np.sqrt(3 * 256)


def test_a_free_bodys_inertia_and_inverse_weights_follow_its_mass(block, drawn):
    """M ∝ mass, so its inverse at rest, which MuJoCo keeps as invweight0, goes with 1/mass."""
    model = block.scene().model
    body, dof = model.body("block").id, model.joint("block").dofadr[0]
    factor = drawn["body_mass"][:, body] / model.body_mass[body]
    np.testing.assert_allclose(
        drawn["body_inertia"][:, body, 0], model.body_inertia[body, 0] * factor, rtol=1e-5
    )
    np.testing.assert_allclose(
        drawn["body_invweight0"][:, body, 0], model.body_invweight0[body, 0] / factor, rtol=1e-5
    )
    np.testing.assert_allclose(
        drawn["dof_invweight0"][:, dof], model.dof_invweight0[dof] / factor, rtol=1e-5
    )


def test_the_robot_keeps_its_mass_where_something_is_free(block, drawn):
    hand = block.scene().model.body("hand").id
    assert np.ptp(drawn["body_mass"][:, hand]) == 0


def test_everything_moving_changes_its_mass_where_nothing_is_free():
    env = envs.make("peg_insert", randomize={"mass": 0.3}, backend="mujoco")
    mass = jax.vmap(lambda key: env.reset(key).physics.body.model["body_mass"])(KEYS[:8])
    assert np.all(np.ptp(np.asarray(mass)[:, 1:], axis=0) > 0)


def test_starts_are_those_of_the_task(block):
    env = randomize_env(block, Randomize(mass=0.5))
    own, _ = jax.random.split(KEYS[0])
    np.testing.assert_array_equal(env.reset(KEYS[0]).obs, block.reset(own).obs)


def _thrown(env, steps=12):
    """Where a dropped, pushed block is after some steps in each of 4 episodes, [4, nq]."""

    def episode(key):
        state = env.reset(key)
        qpos = state.physics.body.qpos.at[7].add(0.01)
        qvel = state.physics.body.qvel.at[5].set(0.4)
        body = state.physics.body._replace(qpos=qpos, qvel=qvel)
        state = state._replace(physics=state.physics._replace(body=body))
        act = jnp.zeros(4)
        return jax.lax.scan(lambda s, _: (env.step(s, act), None), state, None, length=steps)[
            0
        ].physics.body.qpos

    return np.asarray(jax.jit(jax.vmap(episode))(KEYS[:4]))


@pytest.mark.slow
def test_mujoco_feels_it_and_mjx_feels_the_same():
    plain = envs.make("pick_place", backend="mujoco")
    reference = envs.make("pick_place", randomize=PHYSICS, backend="mujoco")
    one, other = _thrown(reference), _thrown(envs.make("pick_place", randomize=PHYSICS))
    assert np.abs(one[:, 5:8] - _thrown(plain)[:, 5:8]).max() > 5e-3
    np.testing.assert_allclose(
        other[:, 5:8], one[:, 5:8], atol=2e-3
    )  # as far as the two agree on this task anyway


def test_sensor_noise_has_its_deviation_and_leaves_the_physics_alone():
    clean, noisy = envs.make("reach"), envs.make("reach", randomize={"sensor_noise": 0.2})
    action = jnp.full(clean.specs.action_dim, 0.3)

    def run(env, key):
        start = env.reset(key)
        end = env.step(start, action)
        return start.obs, end.obs, end.physics

    one, other = (jax.vmap(lambda key, env=env: run(env, key))(KEYS) for env in (clean, noisy))
    for a, b in zip(one[:2], other[:2], strict=True):
        assert abs(np.std(np.asarray(b - a)) / 0.2 - 1) < 0.1
    assert abs(np.corrcoef((other[0] - one[0]).ravel(), (other[1] - one[1]).ravel())[0, 1]) < 0.15
    jax.tree.map(np.testing.assert_array_equal, one[2], other[2])


def test_actions_arrive_late_by_the_episodes_delay():
    plain, late = envs.make("reach"), envs.make("reach", randomize={"action_delay": 3})
    actions = jax.random.uniform(
        jax.random.key(1), (6, plain.specs.action_dim), minval=-1, maxval=1
    )
    delays = set()
    for key in KEYS[:12]:
        state = late.reset(key)
        delay = int(state.physics.delay)
        delays.add(delay)
        expected = plain.reset(jax.random.split(key)[0])
        for t in range(len(actions)):
            state = late.step(state, actions[t])
            expected = plain.step(
                expected, actions[t - delay] if t >= delay else jnp.zeros_like(actions[0])
            )
            np.testing.assert_allclose(state.obs, expected.obs, atol=1e-6)
    assert delays == {0, 1, 2, 3}


def test_demonstrator_and_scene_see_through_the_delay():
    env = envs.make("reach", randomize={"action_delay": 2})
    demonstrator = env.demonstrator(0.0)
    state = env.reset(KEYS[0])
    action, _ = demonstrator.act(demonstrator.init(KEYS[1], state), state, KEYS[2])
    assert action.shape == (env.specs.action_dim,)
    scened = envs.make("peg_insert", randomize={"action_delay": 2}, backend="mujoco")
    assert scened.scene().pose(scened.reset(KEYS[0]))["qpos"].shape == (5,)


def test_nothing_turned_on_changes_nothing(block):
    assert randomize_env(block, Randomize()) is block


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mass": 1.0}, r"randomize.mass is 1.0; it must be in \[0, 1\)"),
        ({"friction": -0.1}, r"randomize.friction is -0.1; it must be in \[0, 1\)"),
        ({"sensor_noise": -1.0}, "randomize.sensor_noise is -1.0; it must be in"),
        ({"action_delay": -1}, "randomize.action_delay is -1; it must be at least 0"),
        ({"masss": 0.1}, r"no env.randomize field 'masss'; did you mean 'mass'\?"),
        ({"mass": 0.1}, "reach has no MuJoCo model"),
    ],
)
def test_what_cannot_be_randomized_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        envs.make("reach", randomize=fields)


def test_size_needs_a_free_object():
    with pytest.raises(ValueError, match="peg_insert has no freely moving object"):
        envs.make("peg_insert", randomize={"size": 0.1})
