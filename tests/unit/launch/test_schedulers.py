"""Successive halving and searches: what they run, and that they resume as if never stopped."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.sweeps import InProcess, counting_sweep, launch, results, steps

from gcp_jax.launch import Halving, Search, grid, log_uniform, manifest
from gcp_jax.launch.expand import expand
from gcp_jax.launch.status import sweep_status

HALVING = Halving((8, 16), keep=2)
SEARCH = Search({"algorithm.critic_lr": log_uniform(1e-5, 1e-1)}, trials=14, parallel=1)


def test_halving_keeps_the_best_of_each_rung(tmp_path):
    every = tmp_path / "every"
    halved = tmp_path / "halved"
    launch(counting_sweep(), every)
    sweep = counting_sweep(halving=HALVING)
    summary, _ = launch(sweep, halved)
    ids = {run.config.algorithm.settings.critic_lr: run.id for run in expand(sweep)}
    done = steps(halved)
    assert {rate: len(done[name]) for rate, name in ids.items()} == {
        1e-4: 8,
        3e-4: 8,
        3e-3: 16,
        1e-3: 24,
    }
    assert summary.finished == 1 and not summary.failed
    assert results(halved).items() <= results(every).items()
    worst = {run.id: run for run in sweep_status(halved)}[ids[1e-4]]
    assert worst.state == "dropped" and "place 4 of 4" in worst.error


@pytest.mark.parametrize("limit", [1, 3, 5, 6])
def test_halving_resumes_where_it_was_stopped(tmp_path, limit):
    sweep = counting_sweep(halving=HALVING)
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    launch(sweep, whole)
    with pytest.raises(KeyboardInterrupt):
        launch(sweep, cut, InProcess(limit=limit))
    launch(sweep, cut)
    assert steps(cut) == steps(whole) and results(cut) == results(whole)
    assert dropped(cut) == dropped(whole)


def dropped(folder):
    return {path.parent.name: path.read_text() for path in folder.glob("runs/*/dropped.txt")}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_finds_what_is_good_and_resumes_as_if_never_stopped(tmp_path, sampler):
    search = dataclasses.replace(SEARCH, sampler=sampler)
    sweep = counting_sweep(grid("finetune.utd", (0.1,)), search=search)
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    assert launch(sweep, whole).summary.finished == 14
    with pytest.raises(KeyboardInterrupt):
        launch(sweep, cut, InProcess(limit=12))
    launch(sweep, cut)
    assert results(cut) == results(whole) and steps(cut) == steps(whole)
    assert len(manifest.read_manifest(whole)["runs"]) == 14
    rates = {run.id: run.values["algorithm.critic_lr"] for run in sweep_status(whole)}
    scores = {run.id: float(run.score.split()[0]) for run in sweep_status(whole)}
    best = max(scores, key=scores.get)
    assert 1e-4 < rates[best] < 1e-2


def test_a_search_survives_a_trial_that_fails(tmp_path):
    search = dataclasses.replace(SEARCH, trials=3)
    sweep = counting_sweep(grid("demonstrations.path", ("fail",)), search=search)
    summary, _ = launch(sweep, tmp_path, retries=0)
    assert summary.finished == 0 and len(summary.failed) == 3
