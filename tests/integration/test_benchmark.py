"""A tiny benchmark by command: shared clones, equal evaluation points, failures, overrides."""

import json
import shutil

import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.config import ConfigError
from gcp_jax.envs.protocol import NO_SUCCESS
from gcp_jax.experiments import assemble, comparison
from gcp_jax.launch.cli import main
from gcp_jax.run import metrics
from gcp_jax.run.errors import Interrupted
from gcp_jax.run.metrics import rows

pytestmark = pytest.mark.slow

TINY = {
    "env.horizon": 16,
    "policy.hidden": (8,),
    "policy.steps": 2,
    "demonstrations.episodes": 8,
    "pretrain.updates": 4,
    "pretrain.evaluate_every": 4,
    "finetune.learning_starts": 128,
    "finetune.envs": 8,
    "finetune.unroll_chunks": 4,
    "finetune.batch_size": 16,
    "finetune.utd": 0.02,
    "evaluation.episodes": 16,
    "evaluation.every": 256,
    "algorithm.critics": 2,
    "algorithm.critic_hidden": (8,),
}
BROKEN = """
import jax.numpy as jnp
from gcp_jax.algorithms import qc
from gcp_jax.algorithms.qc import Config

def make(config, policy, source):
    algorithm = qc.make(config, policy, source)
    def update(state, batch, key):
        reward = batch.transitions.reward * jnp.nan
        batch = batch._replace(transitions=batch.transitions._replace(reward=reward))
        return algorithm.update(state, batch, key)
    return algorithm._replace(update=update)
"""


def from_flags(**changes):
    plain = {
        "file": "",
        "algorithms": ["qc"],
        "envs": ["reach"],
        "seeds": 2,
        "steps": 512,
        "overrides": {},
    }
    return comparison.choose(**{**plain, **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "broken_method.py").write_text(BROKEN)
    path = folder / "tiny.py"
    plain = {"algorithm": "qc", "algorithm.samples": 2}
    broken = {"algorithm": "broken", "module": "broken_method", "algorithm.samples": 2}
    content = {
        "tasks": {"near": {"config": "reach"}},
        "methods": {
            "plain": plain,
            "wide": {**plain, "algorithm.samples": 4},
            "broken": {**broken, "max_nonfinite_updates": 0},
        },
        "seeds": 2,
        "steps": 512,
        "common": TINY,
    }
    path.write_text(f"def get_config():\n    return {content!r}\n")
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """A benchmark of two methods that work and one whose rewards are NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        chosen = comparison.choose(
            file=str(file), algorithms=[], envs=[], seeds=None, steps=None, overrides={}
        )
        folder = tmp_path_factory.mktemp("runs") / "tiny"
        return chosen, folder, comparison.run(chosen, folder, "gcp-jax benchmark --file=tiny.py")


def test_every_method_starts_from_one_clone_and_is_evaluated_alike(whole):
    chosen, folder, result = whole
    assert (result["finished"], result["tasks"], result["methods"]) == (
        2,
        ["near"],
        ["plain", "wide", "broken"],
    )
    clone = (folder / "near" / "base" / "policy" / "base" / "arrays.npz").read_bytes()
    points, starts = [], []
    for name in ("plain", "wide"):
        assert (folder / "near" / name / "policy" / "base" / "arrays.npz").read_bytes() == clone
        found = rows(folder / "near" / name / "eval.jsonl")
        points.append([(row["env_steps"], row["seed"]) for row in found])
        starts.append([row for row in found if row["stage"] == "base"])
        assert {row["stage"] for row in found} == {"base", "finetune"}
    assert points[0] == points[1]
    assert [r["eval/success"] for r in starts[0]] == [r["eval/success"] for r in starts[1]]
    assert chosen.runs["near"]["wide"].algorithm.settings.samples == 4


def test_a_failure_is_noted_and_the_others_go_on(whole):
    _, folder, result = whole
    assert list(result["failed"]) == ["near/broken"]
    assert "critic_loss was not finite" in (folder / "near" / "broken" / "failed.txt").read_text()
    page = (folder / "report" / "report.html").read_text()
    assert "critic_loss was not finite" in page
    assert (folder / "report" / "table.tex").is_file()


def test_the_same_command_again_runs_only_what_is_not_finished(whole, file, monkeypatch):
    _, folder, _ = whole
    before = {
        path: path.read_bytes()
        for path in folder.glob("near/*/metrics.jsonl")
        if "broken" not in path.parts
    }
    monkeypatch.syspath_prepend(file.parent)
    again = comparison.choose(
        file=str(file), algorithms=["plain", "wide"], envs=[], seeds=None, steps=None, overrides={}
    )
    result = comparison.run(again, folder, "gcp-jax benchmark")
    assert (result["finished"], result["failed"]) == (2, {})
    assert before == {path: path.read_bytes() for path in before}
    labels = [m["label"] for m in json.loads((folder / "benchmark.json").read_text())["methods"]]
    assert labels == ["plain", "wide", "broken"]


@pytest.fixture(scope="module")
def two_clones(whole, file, tmp_path_factory):
    """The benchmark above with a second clone, interrupted and continued by the same command."""
    _, of_one, _ = whole
    folder = tmp_path_factory.mktemp("clones") / "tiny"
    shutil.copytree(of_one, folder)
    chosen = comparison.choose(
        file=str(file),
        algorithms=["plain", "wide"],
        envs=[],
        seeds=None,
        steps=None,
        overrides={},
        clones=2,
    )
    finetune = comparison._finetune

    def interrupt(folder, *rest):
        if folder.parent.name == "clone_1" and folder.name == "wide":
            raise Interrupted("stopped", 15)
        return finetune(folder, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        patch.setattr(comparison, "_finetune", interrupt)
        with pytest.raises(Interrupted):
            comparison.run(chosen, folder, "gcp-jax benchmark --clones=2")
        patch.setattr(comparison, "_finetune", finetune)
        finished = {path: path.read_bytes() for path in folder.glob("near/**/plain/*.jsonl")}
        result = comparison.run(chosen, folder, "gcp-jax benchmark --clones=2")
    return folder, result, finished


def test_a_second_clone_is_added_and_nothing_is_run_twice(whole, two_clones):
    _, of_one, _ = whole
    folder, result, finished = two_clones
    assert (result["finished"], result["failed"], result["clones"]) == (4, {}, 2)
    assert len(finished) == 4  # metrics and evaluations of both clones
    assert finished == {path: path.read_bytes() for path in finished}
    for name in ("base", "plain", "wide"):
        for rows_of in ("metrics.jsonl", "eval.jsonl"):
            before = (of_one / "near" / name / rows_of).read_bytes()
            assert (folder / "near" / name / rows_of).read_bytes() == before


def test_a_second_clone_has_demonstrations_and_a_training_of_its_own(two_clones):
    folder, _, _ = two_clones
    facts, weights = [], []
    for of_clone in (folder / "near", folder / "near" / "clone_1"):
        policy = of_clone / "base" / "policy" / "base"
        facts.append(json.loads((policy / "policy.json").read_text())["demonstrations"])
        weights.append((policy / "arrays.npz").read_bytes())
        for name in ("plain", "wide"):
            copy = of_clone / name / "policy" / "base" / "arrays.npz"
            assert copy.read_bytes() == weights[-1]
    assert facts[0] != facts[1]
    assert weights[0] != weights[1]
    seeds = {row["seed"] for row in rows(folder / "near" / "clone_1" / "wide" / "eval.jsonl")}
    assert seeds == {1000, 1001}


def test_the_report_of_two_clones_has_both(two_clones, capsys):
    folder, _, _ = two_clones
    table = (folder / "report" / "clones.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * 2  # the broken method is still listed
    content = json.loads((folder / "report" / "summary.json").read_text())
    wide = content["tasks"]["near"]["methods"]["wide"]
    assert wide["final"] == pytest.approx(np.mean(wide["final_of_clones"]))
    (folder / "report" / "report.html").unlink()
    assert main.main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"].endswith("report.html")
    assert (folder / "report" / "report.html").is_file()


def test_another_benchmark_is_not_mixed_in(whole):
    chosen, folder, _ = whole
    with pytest.raises(
        ConfigError, match=r"holds a benchmark with seeds=2, not 5; choose another --run_dir"
    ):
        comparison.run(chosen._replace(seeds=5), folder, "gcp-jax benchmark")


def test_flags_choose_and_override():
    chosen = from_flags(algorithms=["qc", "dppo"], overrides={"finetune.envs": 16})
    assert list(chosen.runs) == ["reach"]
    assert [c.algorithm.name for c in chosen.runs["reach"].values()] == ["qc", "dppo"]
    assert {
        (c.finetune.envs, c.finetune.env_steps, c.seeds) for c in chosen.runs["reach"].values()
    } == {(16, 512, 2)}


def test_methods_that_would_be_evaluated_at_other_steps_are_refused(tmp_path):
    chosen = from_flags(
        algorithms=["qc", "dppo"],
        steps=2048,
        overrides={"evaluation.every": 2048, "finetune.learning_starts": 0},
    )
    with pytest.raises(
        ConfigError,
        match="on reach the methods would not be evaluated at the same environment steps",
    ):
        comparison.run(chosen, tmp_path / "b", "gcp-jax benchmark")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"writers": ("wandb",)}, ImportError, "wandb"),
        ({"data_parallel": 16}, ValueError, "data_parallel is 16, but 8 devices are visible"),
    ],
)
def test_what_no_run_could_do_here_is_refused_before_anything_is_written(
    overrides, error, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "_PACKAGES", {"wandb": "no_such_package"})
    chosen = from_flags(steps=8192, overrides=overrides)
    with pytest.raises(error, match=message):
        comparison.run(chosen, tmp_path / "b", "gcp-jax benchmark")
    assert not (tmp_path / "b").exists()


def test_a_population_is_refused():
    flags = {"file": "", "algorithms": ["ogpo"], "envs": ["reach"], "seeds": 1, "steps": None}
    with pytest.raises(
        ConfigError,
        match="population.clip cannot be used here; a benchmark compares methods, not a p",
    ):
        comparison.choose(**flags, overrides={"population.clip": (0.1, 0.2)})


def test_a_task_without_success_is_refused(tmp_path, monkeypatch):
    plain = envs.make("reach")
    by_return = plain._replace(specs=plain.specs._replace(success=NO_SUCCESS))
    monkeypatch.setattr(assemble, "build_env", lambda choice: by_return)
    with pytest.raises(
        ConfigError, match="reach is scored by its return, and a benchmark compares success rates"
    ):
        comparison.run(from_flags(), tmp_path / "b", "gcp-jax benchmark")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": []}, "nothing to compare: name methods and tasks"),
        ({"algorithms": ["ogpoo"]}, "no algorithm is called 'ogpoo'; did you mean 'ogpo'"),
        ({"envs": ["peg"]}, "no environment is called 'peg'; allowed: "),
        ({"overrides": {"env.name": "reach"}}, "--config.env.name cannot be used here"),
        (
            {"overrides": {"finetune.env": 3}},
            "there is no field 'finetune.env'; did you mean 'envs'",
        ),
        ({"overrides": {"finetune.utd": "fast"}}, "cannot set finetune.utd to 'fast'"),
        ({"file": "nowhere.py"}, "--file=nowhere.py is not a Python file"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        from_flags(**changes)
    assert "\n" not in str(error.value)
