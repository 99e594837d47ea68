"""Steps that share a limited time: their order, their failures, and what is on disk."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import gpu
from benchmarks.gpu_run import NOT_RUN, Case, Results, Step, new_folder, run_steps

FACTS = {
    "command": "python -m benchmarks.gpu",
    "began": "2026-01-01T00:00:00+00:00",
    "machine": "2 × test",
    "versions": {"jax": "1.0"},
    "commit": None,
}


class FakeClock:
    """A clock that only the cases advance."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def case(self, name, seconds, figures=None, error=None):
        """A case that takes some seconds and then returns or raises."""

        def measure(context):
            self.now += seconds
            if error:
                raise error
            return {**(figures or {}), "left": context.seconds}

        return Case(name, measure)


def step(name, share, *cases):
    return Step(name=name, about=f"About {name}.", share=share, cases=cases)


def run(folder, clock, seconds, *steps):
    results = Results(folder, FACTS, steps)
    failures = run_steps(steps, results, seconds=seconds, clock=clock)
    return failures, on_disk(folder)


def on_disk(folder):
    return json.loads((folder / "results.json").read_text())["steps"]


def test_a_failure_is_written_in_one_line_and_the_next_case_runs(tmp_path):
    clock = FakeClock()
    cases = (
        clock.case("large", 1, error=RuntimeError("out of\n  memory")),
        clock.case("small", 1, {"ms": 2.0}),
    )
    failures, found = run(tmp_path, clock, 100, step("physics", 1, *cases), step("seeds", 1))
    assert failures == 1
    assert found["physics"]["large"] == {
        "note": "failed: RuntimeError: out of memory",
        "took_s": 1,
    }
    assert found["physics"]["small"]["ms"] == 2.0


def test_a_step_ends_when_its_share_is_used_up(tmp_path):
    clock = FakeClock()
    first = step("first", 1, *(clock.case(name, 20) for name in "abc"))
    second = step("second", 3, clock.case("d", 1))
    failures, found = run(tmp_path, clock, 200, first, second)
    assert failures == 0
    assert [figures.get("left") for figures in found["first"].values()] == [50, 30, None]
    assert found["first"]["c"] == {"note": NOT_RUN}
    assert found["second"]["d"]["left"] == 160


def test_time_that_a_step_leaves_over_is_left_to_the_next(tmp_path):
    clock = FakeClock()
    steps = step("first", 1, clock.case("a", 10)), step("second", 1, clock.case("b", 10))
    _, found = run(tmp_path, clock, 100, *steps)
    assert found["second"]["b"]["left"] == 90


def test_without_time_all_cases_are_written_as_not_run(tmp_path):
    clock = FakeClock()
    steps = step("first", 1, clock.case("a", 300)), step("second", 1, clock.case("b", 1))
    failures, found = run(tmp_path, clock, 200, *steps)
    assert failures == 0 and found["second"] == {"b": {"note": NOT_RUN}}


def test_results_are_on_disk_after_every_case(tmp_path):
    seen = []

    def look(context):
        seen.append((list(on_disk(tmp_path)), (tmp_path / "gpu.md").read_text()))
        return {}

    clock = FakeClock()
    run(
        tmp_path, clock, 100, step("check", 1, clock.case("a", 1)), step("last", 1, Case("b", look))
    )
    [(steps, page)] = seen
    assert steps == ["check"] and "## check" in page and "## last" not in page


def test_a_killed_run_keeps_its_finished_cases(tmp_path):
    clock = FakeClock()
    cases = clock.case("a", 1, {"ms": 1.0}), clock.case("b", 1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, clock, 100, step("check", 1, *cases))
    assert on_disk(tmp_path)["check"]["a"]["ms"] == 1.0


def test_a_case_sees_the_results_before_it(tmp_path):
    clock = FakeClock()
    last = Case("b", lambda context: {"before": context.found["check"]["a"]["ms"]})
    _, found = run(tmp_path, clock, 9, step("check", 1, clock.case("a", 1, {"ms": 5.0}), last))
    assert found["check"]["b"]["before"] == 5.0


def test_the_page_has_a_table_of_every_step_and_of_every_list(tmp_path):
    clock = FakeClock()
    figures = {"kind": "a|b", "curve": [{"env_steps": 2048, "success": 0.5}]}
    run(tmp_path, clock, 9, step("recipe", 1, clock.case("peg_insert", 1, figures)))
    page = (tmp_path / "gpu.md").read_text()
    assert "# 2 × test\n" in page and "commit unknown; jax 1.0." in page
    assert r"| peg_insert | a\|b | 9.0 | 1.0 |" in page
    assert (
        "peg_insert, curve:\n\n|  | env_steps | success |" in page and "| 1 | 2,048 | 0.5 |" in page
    )


def test_no_folder_is_used_twice(tmp_path):
    folders = [new_folder(tmp_path / "gpu", "nvidia_h200") for _ in range(3)]
    assert [folder.name for folder in folders] == [f"nvidia_h200_{i}" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--minutes=0"], "'0' is not allowed; give a number of minutes above 0, at most 1440."),
        (["--minutes=nan"], "'nan' is not allowed; give a number of minutes above 0, at most"),
        (["--minutes=nine"], "'nine' is not allowed; give a number of minutes above 0, at most"),
        (["chek"], "there is no step 'chek'; allowed: check, matrix, physics, updates, segment,"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_get_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(words)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and line in printed and printed.count("\n") == 1


@pytest.fixture
def environment(monkeypatch):
    """Restores the variables that ``main`` sets."""
    for name in ("XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "GCP_JAX_XLA_FLAGS", "NPROC"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_without_an_accelerator_quick_is_named(environment, capsys):
    assert gpu.main(["--minutes=1"]) == 2
    assert capsys.readouterr().err == (
        "benchmarks.gpu: JAX has no accelerator here, only a CPU; add --quick to run on it.\n"
    )


def test_a_folder_that_cannot_be_made_gets_one_line(tmp_path, environment, capsys):
    (tmp_path / "file").write_text("")
    assert gpu.main(["--quick", f"--folder={tmp_path / 'file'}"]) == 2
    assert capsys.readouterr().err.endswith(f"--folder={tmp_path / 'file'}: Not a directory.\n")


@pytest.mark.parametrize("quick", [True, False])
def test_the_steps_are_those_that_are_named(quick, tmp_path):
    steps = gpu.make_steps(tmp_path, quick=quick)
    assert tuple(step.name for step in steps) == gpu.STEPS
    assert all(step.cases and step.share > 0 for step in steps)
