"""``check_env`` passes a sound environment and finds the one contract that a broken copy breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.envs.check import CONTRACTS, EnvError, check_env
from gcp_jax.envs.physics.common import initial_state, next_state
from gcp_jax.envs.protocol import Env, EnvSpecs

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
    env, contract, told = BROKEN[case]
    with pytest.raises(
        EnvError, match=rf"^point breaks the contract '{contract}': .*{told}"
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
