"""Configurations are built once, survive their own JSON, and are refused in one line."""

import dataclasses
import json

import pytest

from gcp_jax import algorithms, envs
from gcp_jax.algorithms import ogpo
from gcp_jax.config import AlgorithmChoice, ConfigError, clone_config, to_dict
from gcp_jax.experiments import run_config
from gcp_jax.experiments.run_config import defaults, frozen_config, resolve


def configured(**fields):
    config = defaults("reach")
    run_config.override(config, {name.replace("__", "."): x for name, x in fields.items()})
    return frozen_config(config)


@pytest.mark.parametrize("algorithm", algorithms.names())
@pytest.mark.parametrize("env", ["reach", "peg_insert", "handover"])
def test_a_configuration_survives_its_own_json(env, algorithm):
    config = frozen_config(defaults(env, algorithm))
    content = json.loads(json.dumps(to_dict(config)))
    assert resolve(content) == config
    assert json.loads(json.dumps(to_dict(resolve(content)))) == content


def test_changed_fields_survive_too():
    config = configured(
        env__horizon=12,
        env__randomize__mass=0.3,
        algorithm__chains=4,
        demonstrations__noise=0.5,
        policy__hidden=(8, 8),
        writers=("tensorboard",),
    )
    assert config.env.settings.horizon == 12
    assert config.env.randomize.mass == 0.3
    assert config.algorithm.settings.chains == 4
    assert config.demonstrations.noise == 0.5
    assert resolve(json.loads(json.dumps(to_dict(config)))) == config


def test_a_population_survives_too():
    content = {**to_dict(configured()), "population": {"clip": [0.1, 0.2], "best_of": [2, 4]}}
    config = resolve(content)
    assert config.population == {"clip": (0.1, 0.2), "best_of": (2, 4)}
    assert config.points == [{"clip": 0.1, "best_of": 2}, {"clip": 0.2, "best_of": 4}]
    assert config.of(config.points[1]).algorithm.settings == ogpo.Config(clip=0.2, best_of=4)
    assert resolve(json.loads(json.dumps(to_dict(config)))) == config


def test_settings_are_flat_beside_name_and_module():
    content = to_dict(configured())
    assert list(content["algorithm"])[:3] == ["name", "module", "gamma"]
    assert list(content["env"])[:2] == ["name", "module"]
    assert "randomize" in content["env"]


def test_settings_are_built_once():
    config = configured()
    assert config.algorithm.settings is config.algorithm.settings
    assert type(config.algorithm.settings) is ogpo.Config
    assert type(config.env.settings) is envs.load("reach").config


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_the_clone_of_a_run_does_not_depend_on_its_method(algorithm):
    config = frozen_config(defaults("reach", algorithm))
    clone = clone_config(dataclasses.replace(config, run_dir="elsewhere", seeds=3))
    assert clone.algorithm == AlgorithmChoice()
    assert (clone.env, clone.pretrain, clone.seeds) == (config.env, config.pretrain, 3)
    assert (clone.run_dir, clone.video, clone.population) == ("", False, {})
    assert clone_config(clone) == clone


def test_what_was_set_of_shared_fields_follows_to_another_method():
    config = defaults("reach")
    run_config.override(config, {"algorithm.gamma": 0.9, "algorithm.actor_lr": 0.5})
    run_config.set_algorithm(config, "qc")
    assert config.algorithm.gamma == 0.9
    run_config.set_algorithm(config, "dsrl")
    assert config.algorithm.gamma == 0.9
    assert config.algorithm.actor_lr == algorithms.load("dsrl").Config().actor_lr


def test_a_method_brings_its_defaults_of_the_run():
    assert algorithms.load("dppo").RUN_DEFAULTS == {"finetune.unroll_chunks": 16}
    config = defaults("reach")
    config.finetune.unroll_chunks = 4
    run_config.set_algorithm(config, "dppo")
    assert config.finetune.unroll_chunks == 16
    config.finetune.unroll_chunks = 4
    run_config.set_algorithm(config, "dppo")
    assert config.finetune.unroll_chunks == 4


def test_the_noise_of_demonstrations_is_none_or_a_number():
    assert configured().demonstrations.noise is None
    assert configured(demonstrations__noise=1).demonstrations.noise == 1.0
    with pytest.raises(ConfigError, match=r"demonstrations\.noise is -1\.0; it must be in"):
        configured(demonstrations__noise=-1.0)


def test_a_file_that_gives_no_configuration_is_refused_in_one_line(tmp_path):
    file = tmp_path / "mine.py"
    for text, message in [
        (None, "cannot read --config=mine: there is no such file; give one such as experiments/"),
        ("get_config = dict", r"its get_config\(\) returns dict, no ConfigDict"),
        ("", "cannot read --config=mine: .*get_config"),
    ]:
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            run_config.read_config_file(str(file), named="--config=mine")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": 3}, r"env is 3; a section with env\.name is expected"),
        ({"env": {}}, r"env\.name is missing; e\.g\. env\.name='reach'"),
        ({"env": {"name": "reech"}}, "no environment is called 'reech'; did you mean 'reach'"),
        (
            {"env": {"name": "reach", "tolerence": 1}},
            r"there is no field 'env\.tolerence'; did you mean 'tolerance'",
        ),
        (
            {"env": {"name": "reach", "tolerance": -1.0}},
            r"env\.tolerance is -1\.0; it must be positive",
        ),
        (
            {"env": {"name": "reach", "randomize": {"mass": 2}}},
            r"randomize\.mass is 2\.0; it must be in \[0, 1\)",
        ),
        ({"algorithm": {"name": "ogpo", "module": 3}}, r"algorithm\.module is 3; the name of an"),
        (
            {"algorithm": {"name": "ogpo", "chain": 3}},
            r"there is no field 'algorithm\.chain'; did you mean 'chains'",
        ),
        ({"finetune": {"envs": "many"}}, r"finetune\.envs is 'many'; a value of type int"),
        ({"policy": {"hidden": 3}}, r"policy\.hidden is 3; a tuple is expected"),
        ({"population": {"chainz": 1}}, r"ogpo has no numeric field 'chainz'; did you mean"),
        ({"population": {"clip": []}}, r"population\.clip has no values"),
        ({"population": {"clip": [0.1, 0.1]}}, "two members have the same values"),
        ({"population": {"clip": [0.1], "chains": [2, 4]}}, "clip has 1, chains has 2 values"),
        ({"population": {"chains": [1]}}, r"algorithm\.chains is 1; it must be at least 2"),
        ({"nothing": 1}, "there is no field 'nothing'; allowed: env, algorithm"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        resolve({"env": {"name": "reach"}, **changes})
    assert "\n" not in str(error.value)
