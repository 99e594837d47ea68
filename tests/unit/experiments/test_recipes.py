"""Every recipe is a valid configuration of every task."""

import pytest

from gcp_jax import algorithms, envs
from gcp_jax.experiments import run_config
from gcp_jax.experiments.recipes import ogpo_paper, one_gpu, two_cores


@pytest.mark.parametrize("task", envs.names())
def test_the_authors_recipe_fits_every_task(task):
    config = run_config.frozen_config(ogpo_paper.get_config(task))
    assert config.env.name == task
    assert config.finetune.utd == 1.0
    assert config.algorithm.settings.chains * config.algorithm.settings.actor_states == 256 * 32


@pytest.mark.parametrize("task", envs.names())
def test_one_gpu_keeps_the_authors_rates_at_smaller_sizes(task):
    small = run_config.frozen_config(one_gpu.get_config(task)).algorithm.settings
    large = run_config.frozen_config(ogpo_paper.get_config(task)).algorithm.settings
    for rate in ("actor_lr", "lr_cycle", "actor_tau", "critic_lr", "critic_tau", "gamma"):
        assert getattr(small, rate) == getattr(large, rate)
    assert small.chains * small.actor_states * 4 == large.chains * large.actor_states


def test_kinds_of_tasks_differ_where_the_paper_says_so():
    door = run_config.frozen_config(ogpo_paper.get_config("adroit_door"))
    assert door.algorithm.settings.actor_tau == 0.05
    assert door.policy.steps == 3
    peg = run_config.frozen_config(ogpo_paper.get_config("peg_insert"))
    assert peg.algorithm.settings.actor_tau == 0.005
    assert peg.policy.steps == 10
    assert ogpo_paper.FAMILY_OF.keys() <= set(envs.names())
    assert set(ogpo_paper.FAMILY_OF.values()) <= ogpo_paper.FAMILIES.keys()


@pytest.mark.parametrize("method", algorithms.names())
def test_two_cores_take_an_update_for_every_step_of_any_method(method):
    config = run_config.frozen_config(two_cores.get_config(f"pick_place,{method}"))
    assert (config.env.name, config.algorithm.name) == ("pick_place", method)
    assert config.finetune.utd == 1.0
    assert method == "dppo" or config.algorithm.settings.critic_hidden == (96, 96)


def test_two_cores_train_ogpo_unless_a_method_is_named():
    assert run_config.frozen_config(two_cores.get_config("reach")).algorithm.name == "ogpo"
