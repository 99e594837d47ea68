"""The trial of ``gcp-jax check``: every method passes it, one that does not learn is refused."""

import dataclasses

import pytest

from gcp_jax import algorithms
from gcp_jax.algorithms import qc
from gcp_jax.config import AlgorithmChoice
from gcp_jax.experiments import method_trial, run_config
from gcp_jax.run.method_check import MethodError

pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]


def default_config(name):
    return run_config.frozen_config(run_config.defaults(env="reach", algorithm=name))


@pytest.mark.parametrize("name", algorithms.names())
def test_every_method_improves_an_untrained_policy(name):
    trial = method_trial.try_method(default_config(name))
    assert trial.base < trial.end <= 0.0


def test_a_method_that_does_not_learn_is_refused_with_numbers(monkeypatch):
    """Its deployed policy is the one that it started from."""

    def make(config, policy, source):
        sound = qc.make(config, policy, source)
        return sound._replace(eval_policy=policy.eval_policy)

    method = type("module", (), {"Config": qc.Config, "make": staticmethod(make)})
    monkeypatch.setattr(algorithms, "load", lambda name, module="": method)
    config = dataclasses.replace(
        default_config("qc"),
        algorithm=AlgorithmChoice(name="qc", module="frozen", settings=qc.Config(base_lr=0.0)),
    )
    message = r"'frozen' does not learn a one-step task: reward -0\.\d+ → -0\.\d+ \(± 0\.\d+; the"
    with pytest.raises(MethodError, match=message):
        method_trial.try_method(config)
