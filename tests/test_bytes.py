"""The same command on the same machine gives the same bytes, whatever the method."""

import dataclasses

import pytest
from runs import TINY, command, last_json, run

from benchmarks.kills import differences
from gcp_jax import algorithms

SHORTER = {
    "seeds": "1", "finetune.env_steps": "768", "evaluation.every": "768", "pretrain.updates": "50", "demonstrations.episodes": "16",
    "video": "False",
}  # fmt: skip


def trained(folder, method, **more):
    """Train by a method, with those of TINY's fields that it has."""
    own = {f"algorithm.{field.name}" for field in dataclasses.fields(algorithms.load(method).Config)}
    foreign = dict.fromkeys(name for name in TINY if name.startswith("algorithm.") and name not in own)
    few = {"algorithm.minibatches": "4"} if method == "dppo" else {}
    last_json(run(command(folder, **{"algorithm.name": method, **SHORTER, **foreign, **few, **more})))
    return folder


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A run of OGPO from its demonstrations on."""
    return trained(tmp_path_factory.mktemp("cloned") / "run", "ogpo")


def test_the_same_command_gives_the_same_rows_policies_table_and_state_from_the_demonstrations_on(cloned, tmp_path):
    assert differences(cloned, trained(tmp_path / "run", "ogpo")) == []


@pytest.mark.parametrize("method", [name for name in algorithms.names() if name != "ogpo"])
def test_the_same_command_gives_the_same_rows_policies_table_and_state(method, cloned, tmp_path):
    base = {"pretrain.artifact": str(cloned / "policy" / "base")}
    folders = [trained(tmp_path / name / "run", method, **base) for name in ("one", "other")]
    assert differences(*folders) == []
