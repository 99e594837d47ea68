"""A run that starts from a saved policy: its configuration holds what is trained."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from helpers.run_configs import small_config

from gcp_jax.config import ConfigError, to_dict
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig, make_policy
from gcp_jax.experiments import assemble
from gcp_jax.launch import expand
from gcp_jax.run import saved_policy
from gcp_jax.run.adopted_policy import adopt_policy
from gcp_jax.run.training import Training
from gcp_jax.types import Specs

SAVED = PolicyConfig(hidden=(6,), steps=5, sigma=0.2, low=(-1.0, -0.5), high=(1.0, 0.5))
DIFFUSION = PolicyConfig(family="diffusion", hidden=(6,), steps=4)


def save(folder, config):
    specs = Specs(obs_dim=4, action_dim=2, chunk=config.chunk)
    policy = make_policy(config, specs)
    normalizer = Normalizer(jnp.zeros(4), jnp.ones(4))
    deployed = {"net": jax.jit(policy.init)(jax.random.key(0)), "normalizer": normalizer}
    return saved_policy.save_policy(
        folder, policy=policy, deployed=deployed, facts={"env": {"name": "reach"}}
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "base", SAVED)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return save(tmp_path_factory.mktemp("diffusion") / "base", DIFFUSION)


def adopted(path, folder, **policy):
    """The adopted configuration of a run with these fields set by hand."""
    fields = {f"policy.{name}": value for name, value in policy.items()}
    config = small_config(**fields, **{"pretrain.saved_policy": str(path)})
    return adopt_policy(config, fields, folder)


def test_what_was_not_set_by_hand_is_that_of_the_saved_policy(saved, tmp_path, capsys):
    assert adopted(saved, tmp_path).policy == SAVED
    errors = capsys.readouterr().err
    assert f"note: policy.hidden is (6,), that of {saved}, not (8,)" in errors
    assert "policy.steps" not in errors


@pytest.mark.parametrize(
    "changes", [{"steps": 7}, {"sigma": 0.05}, {"scheme": "marginal"}, {"compute": "bfloat16"}]
)
def test_how_it_is_sampled_can_be_set_by_hand_and_is_said(saved, tmp_path, capsys, changes):
    """Also to the default of the field."""
    config = adopted(saved, tmp_path, **changes)
    assert config.policy == dataclasses.replace(SAVED, **changes)
    [(name, value)] = changes.items()
    assert f"note: policy.{name} is {value}; {saved} had" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{"hidden": (128, 128, 128)}, {"family": "diffusion"}, {"chunk": 8}, {"low": (-1.0, -1.0)}],
)
def test_another_network_is_refused(saved, tmp_path, changes):
    [name] = changes
    with pytest.raises(ConfigError, match=rf"policy\.{name} .*"):
        adopted(saved, tmp_path, **({"high": (1.0, 1.0)} if name == "low" else {}), **changes)


def test_a_diffusion_keeps_the_noise_levels_that_it_was_trained_with(diffusion, tmp_path):
    assert adopted(diffusion, tmp_path, sigma=0.3).policy.sigma == 0.3
    with pytest.raises(ConfigError, match="policy.steps is 2, but .* trained with 4, which cannot"):
        adopted(diffusion, tmp_path, steps=2)


def test_config_json_and_the_base_policy_hold_what_is_trained(saved, tmp_path):
    config = adopted(saved, tmp_path, steps=7)
    base = Training(config, assemble.make_task(config, film=False), tmp_path, "").pretrain()
    expected = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(SAVED, steps=7))))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["policy"] == expected
    assert json.loads((base / "policy.json").read_text())["policy"] == expected
    assert saved_policy.load_saved_policy(base).policy.config.steps == 7


def test_a_run_whose_configuration_was_not_adopted_is_refused(saved, tmp_path):
    config = small_config(**{"pretrain.saved_policy": str(saved)})
    with pytest.raises(ConfigError, match=r"policy\.hidden is \(8,\), but the policy of .* \(6,\)"):
        Training(config, assemble.make_task(config, film=False), tmp_path, "")


def test_a_run_resumes_without_the_policy_that_it_started_from(saved, tmp_path):
    moved = save(tmp_path / "moved", SAVED)
    config = adopted(moved, tmp_path, steps=7)
    Training(config, assemble.make_task(config, film=False), tmp_path / "run", "").pretrain()
    moved.rename(tmp_path / "elsewhere")
    asked = small_config(**{"pretrain.saved_policy": str(moved), "policy.steps": 7})
    again = adopt_policy(asked, ["policy.steps"], tmp_path / "run")
    assert to_dict(again) == to_dict(config)


def test_a_run_of_a_sweep_adopts_it_when_it_is_listed(saved):
    fields = {"pretrain.saved_policy": str(saved), "policy.steps": 7}
    config = expand.configure("experiments/configs/reach.py", fields, {})
    assert config.policy == dataclasses.replace(SAVED, steps=7)
