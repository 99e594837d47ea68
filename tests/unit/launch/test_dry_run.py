"""``gcp-jax sweep --dry-run``: the sizes and costs of a sweep before anything is started."""

from __future__ import annotations

import pytest

from gcp_jax.experiments import assemble
from gcp_jax.experiments.plan import plan
from gcp_jax.launch import Sweep, dry_run
from gcp_jax.launch.expand import expand, load_sweep

REACH = "experiments/configs/reach.py"
SWEEP = f"""from gcp_jax.launch import *
def get_sweep():
    return Sweep({REACH!r}, (grid('algorithm.critic_lr', (1e-4, 1e-3)),), seeds=2)
"""


@pytest.mark.parametrize("name", ["learning_rates", "search"])
def test_the_sweeps_of_the_project_load(name):
    assert dry_run.planned_runs(load_sweep(f"experiments/sweeps/{name}.py"))


def test_a_dry_run_prints_sizes_and_writes_nothing(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(SWEEP)
    total = dry_run.dry_run(load_sweep(str(file)))
    assert (total["jobs"], total["members"], total["clones"]) == (2, 4, 1)
    assert total["env_steps"] == sum(row["env_steps"] for row in total["runs"]) > 0
    assert total["hours"] > 0 and total["bytes"] > 0
    printed = capsys.readouterr().err
    assert "critic_lr=0.0001" in printed
    assert "2 jobs of 4 trainings, from 1 shared clones" in printed
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_twice_the_members_cost_twice():
    one = expand(Sweep(REACH, seeds=1))[0].config
    two = expand(Sweep(REACH, seeds=2))[0].config
    task = assemble.make_task(one, film=False)
    single = plan.cost(one, task)
    double = plan.cost(two, task)
    parameters = plan.plan(one, task)["policy_parameters"]
    cloning_flops = 6 * one.pretrain.updates * one.pretrain.batch_size * parameters
    assert double.env_steps == 2 * single.env_steps
    assert double.flops - cloning_flops == pytest.approx(2 * (single.flops - cloning_flops))
