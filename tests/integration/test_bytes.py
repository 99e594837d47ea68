"""The same command on the same machine gives the same bytes, whatever the method."""

import dataclasses
import json
import sys
from ast import literal_eval

import pytest
from helpers.runs import TINY, last_json, run

from benchmarks.kills import unequal
from gcp_jax import algorithms

pytestmark = pytest.mark.unmeasured

METHODS = algorithms.names()
SHORTER = {
    "policy.hidden": (8,), "algorithm.critic_hidden": (8,), "demonstrations.episodes": 16, "pretrain.updates": 50,
    "evaluation.every": 768, "video": False,
}  # fmt: skip


def benchmark(task):
    """A file's text: all methods, each with those of TINY's fields that it has."""
    given = {name: literal_eval(value) for name, value in TINY.items()} | SHORTER
    common = {name: value for name, value in given.items() if not name.startswith("algorithm.")}
    del common["seeds"], common["finetune.env_steps"]
    methods = {}
    for name in METHODS:
        own = {
            f"algorithm.{field.name}" for field in dataclasses.fields(algorithms.load(name).Config)
        }
        methods[name] = {"algorithm": name, **{field: given[field] for field in own & given.keys()}}
    methods["dppo"] |= {"algorithm.minibatches": 4}
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
    """Two benchmarks by the same command, each in a process and a folder of its own."""
    root = tmp_path_factory.mktemp("bytes")
    (root / "all_methods.py").write_text(benchmark("reach"))
    program = [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "benchmark",
        f"--file={root / 'all_methods.py'}",
        "--json",
    ]
    for name in ("one", "other"):
        told = last_json(run([*program, f"--run_dir={root / name}"]))
        assert (told["finished"], told["failed"]) == (len(METHODS), {}), json.dumps(told)
    return root / "one" / "reach", root / "other" / "reach"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_command_gives_the_same_rows_policies_and_state(method, folders):
    one, other = (folder / method for folder in folders)
    assert unequal(one, other) == []


def test_the_same_command_gives_the_same_clone(folders):
    one, other = (
        (folder / "base" / "policy" / "base" / "arrays.npz").read_bytes() for folder in folders
    )
    assert one == other
