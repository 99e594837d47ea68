"""``check_method`` passes every sound method, and names the function that breaks a contract."""

import dataclasses
import random
import re
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.run_configs import small_config

from gcp_jax import algorithms
from gcp_jax.config import ConfigError
from gcp_jax.core import optim
from gcp_jax.envs.protocol import EnvSpecs
from gcp_jax.experiments import assemble, run_config
from gcp_jax.run.method_check import CONTRACTS, MethodError, check_method
from gcp_jax.types import Algorithm, identity_preprocess

SPECS = EnvSpecs("sizes", obs_dim=3, action_dim=2, horizon=50, control_dt=0.1, success="none")
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add_a_method.md"


@dataclasses.dataclass(frozen=True)
class Config:
    gamma: float = 0.9


class State(NamedTuple):
    params: Any
    normalizer: Any
    count: Any


def sound(policy, source):
    """The smallest method: cloning of its own replay."""

    def init(key, pretrained):
        return State(pretrained["net"], pretrained["normalizer"], jnp.int32(0))

    def export(state):
        return {"net": state.params, "normalizer": state.normalizer}

    def act(state, obs, key):
        return policy.eval_policy(export(state), obs, key), {}

    def update(state, batch, key):
        transitions = batch.transitions
        obs = state.normalizer(transitions.obs)

        def loss(params):
            losses = policy.bc_loss(params, obs, transitions.action, transitions.mask, key)
            return jnp.mean(losses), {"loss": jnp.mean(losses)}

        sgd = optax.sgd(0.1)
        params, _, metrics = optim.gradient_step(
            loss, state.params, sgd.init(state.params), sgd, name="actor"
        )
        return state._replace(params=params, count=state.count + 1), metrics

    def q_values(state, obs, chunk):
        return jnp.mean(state.normalizer(obs)) + jnp.mean(chunk, (2, 3))[None]

    return Algorithm(
        init=init,
        act=act,
        preprocess_segment=identity_preprocess,
        update=update,
        eval_policy=policy.eval_policy,
        export=export,
        source=source,
        q_values=q_values,
    )


@pytest.fixture
def own_method(monkeypatch):
    """The configuration of a module of the user whose ``make`` is this one."""

    def configured(make, config=Config):
        module = types.ModuleType("own_method")
        module.Config, module.make = config, make
        monkeypatch.setitem(sys.modules, "own_method", module)
        values = run_config.to_dict(small_config("qc", **{"policy.steps": 2}))
        return run_config.resolve(
            {**values, "algorithm": {"name": "own_method", "module": "own_method"}}
        )

    return configured


def updated(change):
    """The update of a sound method, with change(state, metrics, batch, key) of its result."""

    def parts(algorithm):
        def update(state, batch, key):
            return change(*algorithm.update(state, batch, key), batch, key)

        return {"update": update}

    return parts


def with_metric(value):
    return updated(lambda state, metrics, batch, key: (state, {**metrics, "mine": value(batch)}))


def counting(algorithm):
    history = []

    def update(state, batch, key):
        history.append(batch)
        return algorithm.update(state, batch, key)

    return {"update": update}


class Counter:
    """An object that remembers how often it was traced."""

    def __init__(self, algorithm):
        self.count = 0
        self._algorithm = algorithm

    def update(self, state, batch, key):
        self.count += 1
        return self._algorithm.update(state, batch, key)


def plain_tuple(algorithm):
    """A tuple in the place of the state, which ``q_values`` takes for the record."""
    return {
        "init": lambda key, pretrained: tuple(algorithm.init(key, pretrained)),
        "act": lambda state, obs, key: algorithm.act(State(*state), obs, key),
        "export": lambda state: algorithm.export(State(*state)),
        "update": lambda state, batch, key: (
            (tuple(algorithm.update(State(*state), batch, key)[0])),
            {"loss": jnp.float32(0)},
        ),
    }


def _raise(*args):
    raise KeyError("net_params")


def unused_key(algorithm):
    return {"update": lambda state, batch, key: algorithm.update(state, batch, jax.random.key(3))}


def not_averaged(state, metrics, batch, key):
    shift = jnp.mean(batch.transitions.reward)
    return state._replace(params=jax.tree.map(lambda x: x + shift, state.params)), metrics


BROKEN = {
    "a chunk of another shape": (
        lambda a: {"act": lambda s, o, k: (a.act(s, o, k)[0][..., 0], {})},
        "act returns the chunk float32[4, 4], must be float32[4, 4, 2]",
    ),
    "act returns the chunk only": (
        lambda a: {"act": lambda s, o, k: a.act(s, o, k)[0]},
        "act returns a ",
    ),
    "extras without the axis of environments": (
        lambda a: {"act": lambda s, o, k: (a.act(s, o, k)[0], {"z": jnp.zeros(3)})},
        "act returns extras['z'] as float32[3], must have the axis [4] of environments first",
    ),
    "the segment is returned alone": (
        lambda a: {"preprocess_segment": lambda state, segment: segment},
        "preprocess_segment must return a pair",
    ),
    "update appends to a list": (
        counting,
        "update changes the Python variable history (a list of 1, then a list of 2)",
    ),
    "update counts in an object": (
        lambda a: {"update": Counter(a).update},
        "update changes the Python variable self.count (1, then 2)",
    ),
    "update calls random": (
        with_metric(lambda batch: jnp.float32(random.random())),
        "update draws from Python's random",
    ),
    "update calls numpy.random": (
        with_metric(lambda batch: jnp.float32(np.random.normal())),
        "update draws from numpy.random",
    ),
    "update makes a generator": (
        with_metric(lambda batch: jnp.mean(jnp.asarray(np.random.default_rng().normal(size=9)))),
        "update is another function each time it is traced",
    ),
    "a metric of a batch": (
        with_metric(lambda batch: batch.transitions.mask),
        "update returns the metric 'mine' as float32[16, 4], must be float32[]",
    ),
    "a whole number as metric": (
        with_metric(lambda batch: jnp.int32(1)),
        "update returns the metric 'mine' as int32[]",
    ),
    "a Python number as metric": (with_metric(lambda batch: 1), "update returns the metric 'mine'"),
    "no metrics": (
        updated(lambda state, metrics, batch, key: (state, {})),
        "update returns metrics as a dict, must be a dict {name: scalar} with at least one",
    ),
    "update returns the state only": (
        updated(lambda state, metrics, batch, key: state),
        "update returns a State, must be a pair: (state, metrics)",
    ),
    "a dtype changes": (
        updated(lambda state, metrics, batch, key: (state._replace(count=0.5), metrics)),
        "update must return the structure, shapes and dtypes that it received; "
        "state.count was int32[] and is float32[]",
    ),
    "a tuple comes out": (
        updated(lambda state, metrics, batch, key: (tuple(state), metrics)),
        "state was a State and is a tuple",
    ),
    "a tuple for the state": (
        plain_tuple,
        "q_values fails: AttributeError: 'tuple' object has no attribute 'normalizer' "
        "(test_method_check.py:",
    ),
    "export lacks the normalizer": (
        lambda a: {"export": lambda state: {"net": state.params}},
        "'normalizer' is missing",
    ),
    "export of another network": (
        lambda a: {"export": lambda s: {"net": s.count, "normalizer": s.normalizer}},
        "export must return the structure",
    ),
    "the deployed policy gives another chunk": (
        lambda a: {"eval_policy": lambda d, o, k: jnp.zeros((4, 8))},
        "eval_policy returns the chunk float32[4, 8], must be float32[4, 4, 2]",
    ),
    "values without critics": (
        lambda a: {"q_values": lambda s, o, c: jnp.zeros(c.shape[:2])},
        "q_values returns float32[5, 3] for 5 states with 3 actions each",
    ),
    "a key of its own": (unused_key, "update draws random numbers, but not from its key"),
    "a state that differs between devices": (
        updated(not_averaged),
        "on every device of a seed",
    ),
    "a mistake of Python": (
        lambda a: {"update": _raise},
        "update fails: KeyError: 'net_params' (test_method_check.py:",
    ),
}


def test_a_sound_method_passes_and_nothing_is_compiled(own_method):
    compiled = []
    listen = jax.monitoring.register_event_duration_secs_listener
    listen(lambda event, seconds, **_: compiled.append(event) if "backend" in event else None)
    config = own_method(lambda config, policy, source: sound(policy, source))
    compiled.clear()
    assert check_method(config, SPECS).keys() == CONTRACTS.keys()
    assert not compiled


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_method_is_refused_in_one_line(case, own_method):
    change, message = BROKEN[case]

    def make(config, policy, source):
        algorithm = sound(policy, source)
        return algorithm._replace(**change(algorithm))

    with pytest.raises(MethodError, match=re.escape(message)) as error:
        check_method(own_method(make), SPECS)
    text = str(error.value)
    assert text.startswith("the method 'own_method' breaks its contract: ")
    assert "\n" not in text and "docs/guides/add_a_method.md" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda config, policy, source: None, "make returns a NoneType"),
        (lambda config, policy, source: config.nope, "make fails: AttributeError: 'Config' obj"),
    ],
)
def test_a_make_that_builds_no_algorithm_is_refused(make, message, own_method):
    with pytest.raises(MethodError, match=message):
        check_method(own_method(make), SPECS)


def test_a_run_checks_a_method_of_the_users_own_before_anything_is_planned(own_method):
    config = own_method(
        lambda config, policy, source: sound(policy, source)._replace(act=lambda s, o, k: o)
    )
    with pytest.raises(MethodError, match="act returns a "):
        assemble.make_task(config)


@dataclasses.dataclass
class Thawed:
    gamma: float = 0.9


@dataclasses.dataclass(frozen=True)
class WithoutGamma:
    rate: float = 0.9


@dataclasses.dataclass(frozen=True)
class WithoutDefault:
    gamma: float


class NoDataclass:
    gamma = 0.9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Thawed, "own_method.Config is not frozen; write @dataclass"),
        (WithoutGamma, "own_method.Config has no field 'gamma'"),
        (WithoutDefault, "own_method.Config.gamma has no default"),
        (NoDataclass, "own_method.Config is no dataclass"),
    ],
)
def test_a_config_that_cannot_be_one_is_refused(config, message, own_method):
    with pytest.raises(ConfigError, match=message):
        own_method(lambda config, policy, source: None, config)


def guide_method(tmp_path, monkeypatch):
    """The method of the guide, as a module."""
    (code,) = re.findall(r"```python\n(\"\"\".*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "guide_method.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"name": "guide_method", "module": "guide_method"}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in algorithms.names()]


@pytest.mark.parametrize("name", ["the guide's", *SLOW])
def test_every_method_keeps_the_contracts(name, tmp_path, monkeypatch):
    algorithm = {"name": name}
    if name == "the guide's":
        algorithm = guide_method(tmp_path, monkeypatch)
    config = run_config.defaults(env="reach")
    run_config.set_algorithm(config, algorithm["name"], algorithm.get("module", ""))
    run_config.override(config, {"policy.steps": 2, "policy.hidden": (8,)})
    measured = check_method(run_config.frozen_config(config), SPECS)
    assert measured.keys() == CONTRACTS.keys()
