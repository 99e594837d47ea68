"""Every JSON file of the project, damaged at random, gives one line that names it, or is used."""

import copy
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import benchmark_folders, run_folders, sweeps
from helpers.run_configs import small_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gcp_jax import envs
from gcp_jax.atomic_files import write_json
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import Info
from gcp_jax.experiments import comparison, play, run_config
from gcp_jax.json_files import DictOf, JsonError, ListOf, Maybe, OneOf, problem_of, read_json
from gcp_jax.launch import launcher, status, sweep_results
from gcp_jax.launch.cli.main import EXPECTED
from gcp_jax.report import benchmark_read, read
from gcp_jax.run import metrics, replay_fault, saved_policy
from gcp_jax.run.folder import open_folder
from gcp_jax.run.row_gaps import find_gaps
from gcp_jax.run.sizes import Cadence, Cadences
from gcp_jax.stats.eval_rows import before_after
from gcp_jax.types import Specs, Step

COMMAND = "gcp-jax train"
CADENCES = Cadences(Cadence("pretrain", 1, 0, 10, 0, 1, 1), Cadence("finetune", 1, 8, 1, 0, 1, 1))
SHAPE = {
    "name": str,
    "size": int,
    "rate": Maybe(float),
    "rows": ListOf({"stage": OneOf(("base", "finetune"))}),
    "versions": Maybe(DictOf(str)),
}
GOOD = {"name": "a", "size": 3, "rate": 1, "rows": [{"stage": "base", "more": 1}], "versions": {}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"rate": None}, ""),
        ({"rate": float("nan")}, ""),
        ({"name": 3}, "'name' is 3; a string is expected"),
        ({"size": True}, "'size' is True; a whole number is expected"),
        ({"size": 3.0}, "'size' is 3.0; a whole number is expected"),
        ({"rate": "high"}, "'rate' is 'high'; a number is expected"),
        ({"rate": False}, "'rate' is False; a number is expected"),
        ({"rows": {}}, "'rows' is {}; a list is expected"),
        ({"rows": [[]]}, "'rows.0' is []; an object is expected"),
        ({"rows": [{}]}, "'rows.0.stage' is missing"),
        ({"rows": [{"stage": "x"}]}, "'rows.0.stage' is 'x'; one of base, finetune is expected"),
        ({"versions": {"jax": 1}}, "'versions.jax' is 1; a string is expected"),
        ({"versions": "9" * 99}, f"'versions' is '{'9' * 59}…; an object is expected"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(changes, problem):
    assert problem_of({**GOOD, **changes}, SHAPE) == problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON (Expecting"),
        (b"", "is not JSON (Expecting value"),
        (b"\xff\xfe", "is not JSON ('utf-8' codec"),
        (b"[" * 100_000, "is not JSON (too deeply nested)"),
        (b"9" * 5_000, "is not JSON (Exceeds the limit"),
        (b"[]", "the content is []; an object is expected; restore the file as it was written."),
        (b"null", "the content is None; an object is expected"),
        (b"{}", "'name' is missing"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_path(tmp_path, content, words):
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(JsonError) as raised:
        read_json(path, {"name": str})
    message = str(raised.value)
    assert message.startswith(str(path)) and words in message and "\n" not in message


def test_a_folder_instead_of_a_file_is_one_line_and_no_file_is_told_apart(tmp_path):
    with pytest.raises(JsonError, match=f"{tmp_path} cannot be read"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


# Random damage ------------------------------------------------------------------------------------


def places(value, path=()):
    """The paths of all values inside a JSON value, its own first."""
    yield path
    items = {}
    if isinstance(value, dict):
        items = value
    elif isinstance(value, list):
        items = dict(enumerate(value))
    for key, item in items.items():
        yield from places(item, (*path, key))


@st.composite
def damaged(draw, text):
    """The text cut short, or with one of its values replaced or left out."""
    value = json.loads(text)
    path = draw(st.sampled_from(list(places(value))))
    kind = draw(st.sampled_from(("cut", "drop", "replace", "replace", "replace")))
    if kind == "cut":
        return text[: draw(st.integers(0, len(text) - 1))]
    other = draw(st.sampled_from((None, [], {}, "x", "", -1, 7.5, True, [1], {"name": 3}, "base")))
    if not path:
        return json.dumps(other)
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if kind == "drop":
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return json.dumps(value)


@functools.cache
def config():
    return small_config()


def use_run(folder):
    run = read.read_run(folder)
    before_after(run.evals)
    status.status_table([status.run_status(folder, {})])
    keep = metrics.until("finetune", env_steps=640, updates=80)
    for name in ("metrics.jsonl", "eval.jsonl"):
        metrics.truncate_after(folder / name, keep, metrics.ROW)


def use_own_run(folder):
    run_config.config_of_run(folder)
    open_folder(folder, config(), COMMAND, CADENCES, {})
    find_gaps(folder)


def use_sweep(folder):
    status.status_table(status.sweep_status(folder))
    sweep_results.settings_csv(sweep_results.read_sweep(folder))


def use_benchmark(folder):
    benchmark_read.read_benchmark(folder)
    runs = {"peg_insert": {"ogpo": config()}}
    chosen = comparison.Comparison(seeds=3, steps=300, data_parallel=1, runs=runs)
    comparison._write_manifest(chosen, folder, COMMAND)


def use_policy(folder):
    play._env_of(folder, saved_policy.check_saved_policy(folder))


def make_run(folder):
    run_folders.with_demonstrations(folder)


def make_own_run(folder):
    folder.mkdir()
    open_folder(folder, config(), COMMAND, CADENCES, {})


def make_sweep(folder):
    sweep = sweeps.counting_sweep(pack=("algorithm.critic_lr",))
    sweeps.describe(sweep, folder)
    for run in status.read_manifest(folder)["runs"]:
        run_folders.stopped(launcher.run_folder(folder, run))


def make_dataset(folder):
    numbers = np.zeros((3, 2), np.float32)
    flags = np.zeros((3, 2), bool)
    wide = np.zeros((3, 2, 4), np.float32)
    last = np.arange(3)[:, None] == np.full(2, 2)
    steps = Step(wide, wide[..., :2], numbers, wide, flags, last, flags, ~flags)
    info = Info(flags[0], np.zeros(2, np.int32), np.full(2, 3), flags[0])
    storage.write(folder, steps, info, {"env": envs.settings("reach"), "return": -3.5})


def make_policy(folder):
    specs = Specs(obs_dim=4, action_dim=2, chunk=2)
    policy = policy_lib.make_policy(policy_lib.PolicyConfig(chunk=2, hidden=(8,), steps=1), specs)
    normalizer = Normalizer(mean=jnp.zeros(4), std=jnp.ones(4))
    deployed = {"net": policy.init(jax.random.key(0)), "normalizer": normalizer}
    facts = {"env": envs.settings("reach"), "success": 0.5, "episodes": 8}
    saved_policy.save_policy(folder, policy=policy, deployed=deployed, facts=facts)


def make_benchmark(folder):
    benchmark_folders.planned(folder, clones=2)
    benchmark_folders.add_run(folder, "push_t", "ogpo")


def make_fault(folder):
    (folder / "fault").mkdir(parents=True)
    fault = {"stage": "finetune", "clock": 3, "index": 0, "description": "NaN"}
    write_json(folder / "fault" / "fault.json", fault)


FILES = {
    "config.json of a report": (make_run, "config.json", use_run),
    "summary.json": (make_run, "summary.json", use_run),
    "policy.json of a report": (make_run, "policy/base/policy.json", use_run),
    "eval.jsonl": (make_run, "eval.jsonl", use_run),
    "metrics.jsonl": (make_run, "metrics.jsonl", use_run),
    "config.json": (make_own_run, "config.json", use_own_run),
    "sweep.json": (make_sweep, "sweep.json", use_sweep),
    "benchmark.json": (make_benchmark, "benchmark.json", use_benchmark),
    "dataset.json": (make_dataset, "dataset.json", storage.read),
    "policy.json": (make_policy, "policy.json", use_policy),
    "fault.json": (make_fault, "fault/fault.json", replay_fault.load_fault),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Undamaged folders by the kind of file, made when they are first used."""
    root = tmp_path_factory.mktemp("undamaged")
    made = {}

    def folder_of(kind):
        if kind not in made:
            folder = root / str(len(made))
            make, _, use = FILES[kind]
            make(folder)
            use(folder)  # may add to it
            made[kind] = folder
        return made[kind]

    return folder_of


@pytest.mark.parametrize("kind", FILES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_one_line_that_names_the_file(kind, folders, tmp_path, data):
    _, name, use = FILES[kind]
    original = folders(kind)
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    path = folder / name
    lines = path.read_text().split("\n") if name.endswith("l") else [path.read_text()]
    index = data.draw(st.sampled_from([i for i, line in enumerate(lines) if line.strip()]))
    lines[index] = data.draw(damaged(lines[index]))
    path.write_text("\n".join(lines))
    try:
        use(folder)
    except EXPECTED as error:
        message = str(error)
        assert "\n" not in message and len(message) < 600
        assert Path(name).name in message or str(folder) in message
    left = [entry for _, _, names in os.walk(folder) for entry in names if entry.endswith(".tmp")]
    assert left == []
