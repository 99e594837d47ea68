"""``check_env`` passes a sound environment and finds the one contract that a broken copy breaks."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from gcp_jax.contracts import ContractError
from gcp_jax.envs.check import CONTRACTS, EnvError, check_env
from gcp_jax.envs.demos.collect import collect
from gcp_jax.envs.physics.common import initial_state, next_state
from gcp_jax.envs.protocol import Demonstrator, Env, EnvSpecs, Scene
from gcp_jax.envs.rendering import render
from gcp_jax.envs.scenes import check_scene
from gcp_jax.envs.shapes import check_shapes

SPECS = EnvSpecs(
    "point", obs_dim=2, action_dim=1, horizon=8, control_dt=0.1, success="right of 0.6"
)


def _reset(key):
    start_key, state_key = jax.random.split(key)
    place = jax.random.uniform(start_key, (2,), maxval=0.1)
    return initial_state(place, place, state_key)


def _step(state, action):
    place = state.physics + 0.2 * jnp.clip(action, -1.0, 1.0) * jnp.array([1.0, 0.0])
    return next_state(state, physics=place, obs=place, success=place[0] > 0.6, bonus=5.0)


SOUND = Env(_reset, _step, SPECS)


def _after(change):
    """A copy whose states after a step are change(before, action, after)."""
    return SOUND._replace(step=lambda state, action: change(state, action, _step(state, action)))


def _noise(state, scale=0.01):
    return scale * jax.random.normal(state.key, (2,))


def _self_resetting(before, action, after):
    fresh = _reset(before.key)
    return after._replace(obs=jnp.where(after.success, fresh.obs, after.obs))


def _impure(before, action, after):
    """Host state that leaks into a step: what it gives depends on how often it ran."""

    def leak(place):
        _impure.calls += 1
        return np.asarray(place) + np.float32(0.01 * _impure.calls)

    return after._replace(
        obs=jax.pure_callback(leak, after.obs, after.obs, vmap_method="sequential")
    )


_impure.calls = 0

BROKEN = {
    "obs of another length": (
        SOUND._replace(specs=SPECS._replace(obs_dim=3)),
        "shapes",
        "obs after reset",
    ),
    "integer obs": (
        SOUND._replace(reset=lambda key: _reset(key)._replace(obs=jnp.zeros(2, jnp.int32))),
        "shapes",
        "int32",
    ),
    "raw key": (
        SOUND._replace(reset=lambda key: _reset(key)._replace(key=jax.random.key_data(key))),
        "shapes",
        "typed key",
    ),
    "no horizon": (SOUND._replace(specs=SPECS._replace(horizon=0)), "shapes", "specs.horizon"),
    "step changes a dtype": (
        _after(lambda b, a, s: s._replace(time=s.time * 1.0)),
        "shapes",
        ".time",
    ),
    "impure step": (_after(_impure), "deterministic", "two steps"),
    "one start only": (
        SOUND._replace(reset=lambda key: _reset(jax.random.key(0))),
        "keys",
        "different starts",
    ),
    "reset hands its key on": (
        SOUND._replace(reset=lambda key: _reset(key)._replace(key=key)),
        "keys",
        "split it",
    ),
    "step hands its key on": (
        _after(lambda b, a, s: s._replace(obs=s.obs + _noise(b))),
        "keys",
        "unchanged",
    ),
    "actions not clipped": (
        SOUND._replace(
            step=lambda s, a: next_state(
                s, physics=s.physics, obs=s.physics + a[0], success=a[0] > 9, bonus=5.0
            )
        ),
        "clipping",
        "outside",
    ),
    "infinite numbers": (
        _after(lambda b, a, s: s._replace(obs=jnp.where(a > 0.9, jnp.inf, s.obs))),
        "finite",
        "diverged",
    ),
    "success goes on": (
        _after(lambda b, a, s: s._replace(terminated=jnp.zeros((), bool))),
        "endings",
        "without terminating",
    ),
    "both ends": (_after(lambda b, a, s: s._replace(truncated=s.terminated)), "endings", "at once"),
    "own time limit": (
        _after(lambda b, a, s: s._replace(truncated=(b.time == 3) & ~s.terminated)),
        "endings",
        "truncated at",
    ),
    "resets by itself": (_after(_self_resetting), "successor", "fresh start"),
    "done at the start": (
        SOUND._replace(reset=lambda key: _reset(key)._replace(reward=jnp.ones(()))),
        "pool",
        "reward",
    ),
}


def _demonstrated(init=None, act=None, mode=None, modes=2):
    """A copy with a demonstrator that walks to the right, of which one part is another."""
    return SOUND._replace(
        demonstrator=lambda noise: Demonstrator(
            init=init or (lambda key, state: jax.random.randint(key, (), 0, 2)),
            act=act or (lambda memory, state, key: (jnp.ones(1), memory)),
            mode=mode or (lambda memory: memory),
            modes=modes,
        )
    )


BROKEN_DEMONSTRATORS = {
    "an action of another size": (
        _demonstrated(act=lambda memory, state, key: (jnp.ones(2), memory)),
        r"demonstrator.act returns the action float32\[2\], must be float32\[1\]",
    ),
    "the action only": (
        _demonstrated(act=lambda memory, state, key: jnp.ones(1)),
        "demonstrator.act returns a ",
    ),
    "a memory of another dtype": (
        _demonstrated(act=lambda memory, state, key: (jnp.ones(1), memory * 1.0)),
        r"demonstrator.act must return the memory.*; memory was int32\[\] and is float32\[\]",
    ),
    "a mode of a float": (
        _demonstrated(mode=lambda memory: 1.0 * memory),
        r"demonstrator.mode returns float32\[\], must be int32\[\]",
    ),
    "no modes": (_demonstrated(modes=0), "demonstrator.modes is 0"),
    "init fails": (
        _demonstrated(init=lambda key, state: state.physics["goal"]),
        "demonstrator.init fails: TypeError: .*test_check_env.py:",
    ),
    "a branch on noise": (
        SOUND._replace(demonstrator=lambda noise: _demonstrated().demonstrator(noise or 0.0)),
        "demonstrator.init fails: TracerBoolConversionError",
    ),
    "no demonstrator comes": (
        SOUND._replace(demonstrator=lambda noise: None),
        "demonstrator returns a NoneType, must be a Demonstrator",
    ),
    "tasks without an index": (
        SOUND._replace(specs=SPECS._replace(tasks=("left", "right"))),
        "specs.tasks names 2 tasks, but Env.task is None",
    ),
    "an integer reward": (
        _after(lambda b, a, s: s._replace(reward=jnp.int32(-1))),
        r"a step changes the state's structure: .reward was float32\[\] and is int32\[\]",
    ),
    "step fails": (_after(lambda b, a, s: s.reward["x"]), "step fails: .*test_check_env.py:"),
    "reset returns another record": (
        SOUND._replace(reset=lambda key: (jnp.zeros(2), 0.0)),
        "reset returns a tuple, must be a State",
    ),
}


@pytest.mark.parametrize("case", BROKEN_DEMONSTRATORS)
def test_wrong_shapes_are_found_without_compiling(case):
    env, message = BROKEN_DEMONSTRATORS[case]
    with pytest.raises(EnvError, match=f"^point breaks the contract 'shapes': {message}") as caught:
        check_shapes(env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            _demonstrated(mode=lambda memory: memory * 0 + 5),
            r"demonstrator.mode returns \[5\], mus",
        ),
        (
            _demonstrated(act=lambda memory, state, key: (jnp.full(1, 1.5), memory)),
            r"demonstrator.act returns \[1.5\] at step 0, must lie in \[-1, 1\]",
        ),
    ],
    ids=["mode", "action"],
)
def test_a_demonstrator_is_run_for_whole_episodes(env, message):
    with pytest.raises(EnvError, match=f"'demonstrator': {message}"):
        check_env(env, jax.random.key(0), n=4, steps=60)


def test_demonstrations_of_a_mode_that_does_not_exist_are_refused():
    env = _demonstrated(mode=lambda memory: memory * 0 + 5)
    message = r"^point breaks the contract 'demonstrator': demonstrator.mode returns \[5\]"
    with pytest.raises(EnvError, match=message):
        collect(env, 0.0, jax.random.key(0), 2)


def test_a_sound_demonstrator_says_what_it_did():
    measured = check_env(_demonstrated(), jax.random.key(0), n=4, steps=60)
    assert measured["demonstrator"] == "2 of 2 clean episodes succeed; modes 0, 1 of 2"


def test_an_infinite_reward_is_named():
    env = _after(lambda b, a, s: s._replace(reward=jnp.where(b.time == 2, jnp.inf, s.reward)))
    message = "first at step 2 with action .*, where step returns reward = inf"
    with pytest.raises(EnvError, match=f"'finite': .* diverged, allowed 0; {message}"):
        check_env(env, jax.random.key(0), n=4, steps=60)


WORLD = """<mujoco><worldbody><camera name="main" pos="0 0 3"/><body><joint name="x" type="slide"/>
<geom type="sphere" size=".1"/></body></worldbody></mujoco>"""


def _seen(camera="main", pose=None):
    """A copy with a scene of one number."""
    model = mujoco.MjModel.from_xml_string(WORLD)
    pose = pose or (lambda state: {"qpos": state.physics[:1]})
    return SOUND._replace(scene=lambda: Scene(model, pose, camera))


START = jax.vmap(SOUND.reset)(jax.random.split(jax.random.key(0), 1))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (_seen(camera="front"), "camera is 'front', which the model does not have; allowed: main"),
        (_seen(pose=lambda s: {"qpoz": s.physics[:1]}), "'qpoz', which is no field of mujoco.MjD"),
        (_seen(pose=lambda s: {"qpos": s.physics}), r"'qpos' to the shape \[2\], must be \[1\]"),
        (_seen(pose=lambda s: {"qpos": np.full(1, np.nan)}), "'qpos' to NaN or infinity"),
        (_seen(pose=lambda s: s.goal), "pose fails: AttributeError: .*test_check_env.py:"),
        (_seen(pose=lambda s: s.physics), "pose returns a ndarray, must be a dict"),
        (SOUND._replace(scene=lambda: None), "scene returns a NoneType, must be a Scene"),
    ],
    ids=["camera", "field", "shape", "nan", "error", "no dict", "no scene"],
)
def test_a_scene_that_cannot_be_drawn_is_found(env, message, monkeypatch):
    monkeypatch.setattr(render, "frames", lambda *args, **sizes: pytest.fail("drawn all the same"))
    with pytest.raises(ContractError, match=message):
        check_scene(env, START)


@pytest.mark.parametrize("camera", ["main", ""])
def test_a_scene_is_drawn_if_drawing_is_possible(camera, monkeypatch):
    monkeypatch.setattr(render, "frames", lambda *args, **sizes: np.zeros((1, 48, 64, 3)))
    assert "drawn [1, 48, 64, 3]" in check_scene(_seen(camera), START)


def test_without_opengl_the_check_says_so_and_passes(monkeypatch):
    def frames(*args, **sizes):
        raise render.RenderingUnavailable("no OpenGL library")

    monkeypatch.setattr(render, "frames", frames)
    assert check_scene(_seen(), START) == "camera 'main'; not drawn: no OpenGL library"


def test_a_failure_to_draw_is_the_scenes(monkeypatch):
    def frames(*args, **sizes):
        raise RuntimeError("drawing failed: no such texture")

    monkeypatch.setattr(render, "frames", frames)
    with pytest.raises(ContractError, match="drawing failed: no such texture"):
        check_scene(_seen(), START)


def _branching(state, action):
    """Acts otherwise when it is not traced."""
    new = _step(state, action)
    return new if isinstance(action, jax.core.Tracer) else new._replace(obs=new.obs + 0.1)


def test_sound_environment_passes_every_contract():
    measured = check_env(SOUND, jax.random.key(0), n=4, steps=60)
    assert set(measured) == {"shapes", *CONTRACTS}
    assert "0 successes" not in measured["endings"]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_contract_is_caught(case):
    env, contract, complaint = BROKEN[case]
    with pytest.raises(
        EnvError, match=rf"^point breaks the contract '{contract}': .*{complaint}"
    ) as caught:
        check_env(env, jax.random.key(0), n=4, steps=60)
    assert "\n" not in str(caught.value)


def test_step_that_depends_on_compilation_is_caught():
    with pytest.raises(EnvError, match="'batching'.*1.0e-01"):
        check_env(SOUND._replace(step=_branching), jax.random.key(0), n=4, steps=60)


def test_stochastic_step_that_splits_its_key_passes():
    def step(state, action):
        use, keep = jax.random.split(state.key)
        new = _step(state, action)
        return new._replace(obs=new.obs + 0.01 * jax.random.normal(use, (2,)), key=keep)

    measured = check_env(SOUND._replace(step=step), jax.random.key(0), n=4, steps=60)
    assert "stochastic" in measured["keys"]


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="more steps than the horizon 8"):
        check_env(SOUND, jax.random.key(0), steps=8)
