"""What a benchmark sets itself, and what its methods share, is not overridden silently."""

import json
from pathlib import Path

import pytest

from gcp_jax import envs
from gcp_jax.config import ConfigError
from gcp_jax.experiments import assemble, comparison, run_config
from gcp_jax.run.sizes import run_sizes

COMPARISONS = Path(comparison.__file__).parent / "comparisons"
FILES = sorted(COMPARISONS.glob("[!_]*.py"))


def choose(
    tmp_path,
    *,
    common=None,
    task=None,
    method=None,
    seeds=None,
    steps=None,
    flags=None,
    clones=None,
    **declared,
):
    """A benchmark of qc with its defaults and with the fields of ``method``, on reach."""
    content = {
        "tasks": {"near": {"config": "reach", **(task or {})}},
        "methods": {
            "plain": {"algorithm": "qc"},
            "other": {"algorithm": "qc", **(method or {})},
        },
        "seeds": 2,
        "steps": 8192,
        "common": common or {},
        **declared,
    }
    path = tmp_path / "tiny.py"
    path.write_text(f"def get_config():\n    return {content!r}\n")
    return comparison.choose(
        file=str(path),
        algorithms=[],
        envs=[],
        seeds=seeds,
        steps=steps,
        overrides=flags or {},
        clones=clones,
    )


def of_file(path, **overrides):
    return comparison.choose(
        file=str(path), algorithms=[], envs=[], seeds=None, steps=None, overrides=overrides
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_benchmark_files_of_the_project_are_valid(path):
    """Every run is evaluated at the same environment steps, so that a task's can be compared."""
    specs = {}
    for task, methods in of_file(path).runs.items():
        first = next(iter(methods.values()))
        if repr(first.env) not in specs:
            specs[repr(first.env)] = assemble.make_task(first, film=False).env.specs
        sizes = [run_sizes(config, specs[repr(first.env)]) for config in methods.values()]
        ends = {size.segments * size.env_steps for size in sizes}
        evaluated = {size.evaluate_every * size.env_steps for size in sizes}
        assert (len(ends), len(evaluated)) == (1, 1), task


def test_a_flag_changes_the_update_ratio_of_a_benchmark_file():
    path = COMPARISONS / "update_ratio.py"
    for utd, flags in ((1.0, {}), (0.125, {"finetune.utd": 0.125})):
        runs = of_file(path, **flags).runs["pick_place_poor"]
        assert {run.finetune.utd for run in runs.values()} == {utd}


@pytest.mark.parametrize("field", comparison.SET_HERE)
def test_fields_that_a_benchmark_sets_itself_are_refused(tmp_path, field):
    """As flags and anywhere in a file; the message names what to use."""
    name = f"{field}clip" if field.endswith(".") else field
    remedy = comparison.SET_HERE[field].split("=")[0].split("(")[0]
    value = {name: 0}
    with pytest.raises(ConfigError, match=f"^--config.{name} cannot be used here; {remedy}"):
        choose(tmp_path, flags=value)
    for where, part in (("common", "common"), ("near", "task"), ("other", "method")):
        with pytest.raises(ConfigError, match=f"^{where}: {name} cannot be used here"):
            choose(tmp_path, **{part: value})


def test_flags_set_seeds_and_steps_of_all_runs(tmp_path):
    chosen = choose(tmp_path, seeds=5, steps=16384)
    assert {(run.seeds, run.finetune.env_steps) for run in chosen.runs["near"].values()} == {
        (5, 16384)
    }
    assert choose(tmp_path).seeds == 2


@pytest.mark.parametrize("part", ["task", "method"])
def test_a_field_of_a_part_and_of_every_run_is_refused(tmp_path, part):
    label = {"task": "near", "method": "other"}[part]
    fields = {part: {"finetune.utd": 0.5}}
    with pytest.raises(ConfigError, match=f"finetune.utd is set for {label} and for every run"):
        choose(tmp_path, common={"finetune.utd": 0.25}, **fields)
    with pytest.raises(ConfigError, match="set it in one of them"):
        choose(tmp_path, flags={"finetune.utd": 0.25}, **fields)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"demonstrations.episodes": 7},
            r"near: other sets demonstrations.episodes=7, but the methods of a task share a clone, "
            "which is made with 200; set it for the task",
        ),
        ({"pretrain.updates": 50}, r"pretrain.updates=50.*4000"),
        ({"env.horizon": 30}, r"env.horizon=30"),
        ({"seed": 4}, "seed=4"),
        ({"policy.hidden": (8,)}, r"policy.hidden is \(8,\), .* clone of near: other .* cannot"),
    ],
)
def test_a_method_cannot_ask_for_a_clone_of_its_own(tmp_path, method, message):
    chosen = choose(tmp_path, method=method)
    task = assemble.make_task(chosen.runs["near"]["plain"], film=False)
    with pytest.raises(ConfigError, match=message):
        comparison._check_comparable(chosen, {"near": task})


@pytest.mark.parametrize("task", envs.names())
def test_methods_with_the_defaults_of_a_task_share_its_clone(task):
    """Whatever the types of its fields."""
    run = run_config.frozen_config(run_config.defaults(env=task))
    comparison._check_clone("other", run, run)


def test_a_method_can_sample_the_clone_otherwise(tmp_path):
    chosen = choose(tmp_path, method={"policy.steps": 8})
    task = assemble.make_task(chosen.runs["near"]["plain"], film=False)
    comparison._check_comparable(chosen, {"near": task})
    plain, other = chosen.runs["near"].values()
    assert comparison._changed_policy_fields(plain, other) == ["policy.steps"]


def test_clones_are_those_of_the_file_unless_a_flag_says_otherwise(tmp_path):
    assert choose(tmp_path).clones == 1
    assert choose(tmp_path, clones=3).clones == 3
    of_file = tmp_path / "of_file"
    of_file.mkdir()
    assert choose(of_file, **{"clones": 2}).clones == 2


def test_every_clone_has_seeds_and_a_folder_of_its_own(tmp_path):
    """The first is that of a benchmark of one clone."""
    chosen = choose(tmp_path, clones=3, common={"seed": 7})
    folder = Path("runs")
    first, *others = chosen.all_clones(folder)
    assert (first.runs, first.folder, first.name) == (chosen.runs["near"], folder / "near", "near")
    assert first.config == choose(tmp_path, common={"seed": 7}).all_clones(folder)[0].config
    assert [clone.folder for clone in others] == [
        folder / "near" / "clone_1",
        folder / "near" / "clone_2",
    ]
    assert [clone.name for clone in others] == ["near/clone_1", "near/clone_2"]
    for clone, seeds in zip((first, *others), ([7, 8], [1007, 1008], [2007, 2008]), strict=True):
        assert {tuple(run.all_seeds) for run in clone.runs.values()} == {tuple(seeds)}
        assert clone.config.all_seeds == seeds  # of its demonstrations and its cloning


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"clones": 0}, "clones is 0; it must be in [1, 2147483647]"),
        (
            {"clones": 2, "seeds": 1001},
            "seeds is 1001; with several clones it must be",
        ),
        (
            {"clones": 2, "common": {"demonstrations.path": "demos/reach"}},
            "near clones the dataset demos/reach, of which all clones would be made, but each "
            "needs demonstrations of its own; leave demonstrations.path out, or choose --clones=1",
        ),
        (
            {"clones": 3_000_000},
            "the last seed of 3000000 clones from seed=0 is 2999999001; it must be at most",
        ),
        (
            {"clones": 2, "methods": {"clone_1": {"algorithm": "qc"}}},
            "a method is called 'clone_1', like the folder of a clone; choose another label",
        ),
        (
            {"methods": {"base": {"algorithm": "qc"}}},
            "a method is called 'base', like the folder of the clone; choose another label",
        ),
    ],
)
def test_clones_that_cannot_be_are_refused_in_one_line(tmp_path, choice, message):
    with pytest.raises(ConfigError) as error:
        choose(tmp_path, **choice)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_manifest_counts_clones_if_there_are_several(tmp_path):
    """A benchmark of one clone is listed as before; clones are added and never forgotten."""
    folder = tmp_path / "bench"
    listed = []
    for clones in (1, 2, 4, 1):
        chosen = choose(tmp_path, clones=clones)
        comparison._check_folder(chosen, folder)
        comparison._write_manifest(chosen, folder, "gcp-jax benchmark")
        listed.append(json.loads((folder / "benchmark.json").read_text()).get("clones"))
    assert listed == [None, 2, 4, 4]
