"""The same command on the same machine gives the same bytes, whatever the method."""

import dataclasses

import pytest
from runs import TINY, command, last_json, run

from benchmarks.kills import differences
from gcp_jax import algorithms

SHORTER = {
    "seeds": "1", "finetune.env_steps": "768", "evaluation.every": "384", "pretrain.updates": "50", "demonstrations.episodes": "16",
    "video": "False",
}  # fmt: skip


@pytest.mark.parametrize("method", algorithms.names())
def test_the_same_command_gives_the_same_rows_policies_table_and_state(method, tmp_path):
    own = {f"algorithm.{field.name}" for field in dataclasses.fields(algorithms.load(method).Config)}
    foreign = dict.fromkeys(name for name in TINY if name.startswith("algorithm.") and name not in own)
    folders = [tmp_path / name / "run" for name in ("one", "other")]
    for folder in folders:
        last_json(run(command(folder, **{"algorithm.name": method, **SHORTER, **foreign})))
    assert differences(*folders) == []
