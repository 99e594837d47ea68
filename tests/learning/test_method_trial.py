"""The trial of ``gcp-jax check``: no method makes a policy worse, and one that does is refused."""

import dataclasses

import jax.numpy as jnp
import pytest

from gcp_jax import algorithms
from gcp_jax.algorithms import qc
from gcp_jax.config import AlgorithmChoice
from gcp_jax.experiments import method_trial, run_config
from gcp_jax.run.method_check import MethodError

pytestmark = pytest.mark.slow


def default_config(name):
    return run_config.frozen_config(run_config.defaults(env="reach", algorithm=name))


@pytest.mark.parametrize("name", algorithms.names())
def test_no_method_makes_an_untrained_policy_worse(name):
    trial = method_trial.try_method(default_config(name))
    assert trial.learned or name != "ogpo"


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (0.5, None),
        (
            -1.0,
            r"'mine' makes a policy worse on a task of one step: NOT better .*: reward -0\.\d+ ",
        ),
    ],
)
def test_a_policy_that_became_worse_is_refused_with_numbers(action, message, monkeypatch):
    """The deployed policy always takes one action."""

    def make(config, policy, source):
        sound = qc.make(config, policy, source)
        return sound._replace(eval_policy=lambda d, obs, key: jnp.full((len(obs), 1, 1), action))

    method = type("module", (), {"Config": qc.Config, "make": staticmethod(make)})
    monkeypatch.setattr(algorithms, "load", lambda name, module="": method)
    choice = AlgorithmChoice(name="qc", module="mine", settings=qc.Config())
    config = dataclasses.replace(default_config("qc"), algorithm=choice)
    if message is None:
        assert method_trial.try_method(config).learned
        return
    with pytest.raises(MethodError, match=message):
        method_trial.try_method(config)
