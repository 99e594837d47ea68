"""The same command on the same machine gives the same bytes, whatever the method."""

import dataclasses
import json
from ast import literal_eval

import pytest
from helpers.runs import CLI, TINY, last_json, run

from benchmarks.equality import unequal_parts
from gcp_jax import algorithms

# Two benchmarks of all methods, compiled once: minutes, and more beside other tests.
pytestmark = [pytest.mark.process, pytest.mark.timeout(1800)]

METHODS = algorithms.names()
SHORTER = {
    "policy.hidden": (8,),
    "algorithm.critic_hidden": (8,),
    "demonstrations.episodes": 16,
    "pretrain.updates": 50,
    "evaluation.every": 768,
}


def benchmark(task):
    """The text of a benchmark's file: all methods, each with those of TINY's fields that it has."""
    given = {name: literal_eval(value) for name, value in TINY.items()} | SHORTER
    common = {name: value for name, value in given.items() if not name.startswith("algorithm.")}
    del common["seeds"]
    del common["finetune.env_steps"]
    methods = {}
    for name in METHODS:
        settings = dataclasses.fields(algorithms.load(name).Config)
        fields = {f"algorithm.{field.name}" for field in settings} & given.keys()
        methods[name] = {"algorithm": name, **{field: given[field] for field in sorted(fields)}}
    methods["dppo"]["algorithm.minibatches"] = 4
    chosen = {
        "tasks": {task: {"config": task}},
        "methods": methods,
        "seeds": 1,
        "steps": 768,
        "common": common,
    }
    return f"def get_config():\n    return {chosen!r}\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two benchmarks by the same command, each in its own process and folder."""
    root = tmp_path_factory.mktemp("bytes")
    file = root / "all_methods.py"
    file.write_text(benchmark("reach"))
    for name in ("one", "other"):
        command = [*CLI, "benchmark", f"--file={file}", f"--run_dir={root / name}", "--json"]
        summary = last_json(run(command))
        assert summary["finished"] == len(METHODS), json.dumps(summary)
        assert summary["failed"] == {}, json.dumps(summary)
    return root / "one" / "reach", root / "other" / "reach"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_command_gives_the_same_rows_policies_and_state(method, folders):
    one, other = (folder / method for folder in folders)
    assert unequal_parts(one, other) == []


def test_the_same_command_gives_the_same_clone(folders):
    one, other = (
        (folder / "base" / "policy" / "base" / "arrays.npz").read_bytes() for folder in folders
    )
    assert one == other
