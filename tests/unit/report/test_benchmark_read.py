"""The folder of a benchmark: states of its runs, and a plan that cannot be read."""

import pytest
from helpers.benchmark_folders import FAILURE, TASKS, add_run, numbers, planned, table

from gcp_jax.report import benchmark_page
from gcp_jax.report.benchmark_numbers import aggregate_of
from gcp_jax.report.benchmark_read import read_benchmark
from gcp_jax.report.read import ReportError


def test_the_state_of_every_run_is_shown(partial):
    states = {key: line["state"] for key, line in table(partial).items()}
    assert states["peg_insert", "ogpo"] == "finished"
    assert states["peg_insert", "dp&po_<i>"] == f"failed: {FAILURE}"
    assert states["push_t", "flow_grpo"] == "running"
    assert states["all", "ogpo"] == "over 1 of 2 tasks"  # the other is still running
    assert states["all", "dp&po_<i>"] == "not finished on every task"


def test_what_may_still_change_is_left_open(partial):
    for key in (("push_t", "flow_grpo"), ("peg_insert", "dp&po_<i>")):
        line = table(partial)[key]
        open_columns = ("final", "best", "equal_compute", "iqm", "steps_to_80")
        assert [line[name] for name in open_columns] == [""] * 5
    running = table(partial)["push_t", "flow_grpo"]
    known = numbers(running, "base", "env_steps", "steps_to_50", "train_seconds")
    assert known == pytest.approx([0.55, 100, 0, 30])


def test_a_benchmark_just_started_has_a_report(tmp_path):
    page = benchmark_page.write(planned(tmp_path / "bench", tasks=[{"label": "only"}]))
    assert "0 of 3 runs finished" in page.read_text()
    states = {line["state"] for line in table(page).values()}
    assert states == {"not run yet", "not finished on every task"}
    tex = (page.parent / "table.tex").read_text(encoding="utf-8")
    assert r"ogpo & \emph{not run yet} & \emph{--} \\" in tex


def test_a_finished_run_without_all_its_seeds_has_no_score(tmp_path):
    folder = planned(tmp_path / "bench", seeds=4)
    add_run(folder, "peg_insert", "ogpo")
    entry = read_benchmark(folder).entries["peg_insert", 0]
    assert (entry.state, entry.scores) == ("failed: 3 of 4 seeds were evaluated", ())


def test_a_failure_of_an_earlier_attempt_is_ignored_once_the_run_has_finished(tmp_path):
    folder = planned(tmp_path / "bench")
    run = folder / "peg_insert" / "ogpo"
    add_run(folder, "peg_insert", "ogpo", upto=100, finished=False)
    (run / "failed.txt").write_text("out of\nmemory\n")
    assert read_benchmark(folder).entries["peg_insert", 0].state == "failed: out of memory"
    (run / "summary.json").write_text('{"seconds": 99.0}')
    assert read_benchmark(folder).entries["peg_insert", 0].state == "finished"


def test_without_a_settled_task_those_that_some_method_finished_are_compared(tmp_path):
    folder = planned(tmp_path / "bench")
    for task in TASKS:
        add_run(folder, task, "flow_grpo")
    add_run(folder, "push_t", "ogpo")
    aggregate = aggregate_of(read_benchmark(folder))
    assert (aggregate.tasks, list(aggregate.iqm), aggregate.better) == (TASKS, [1], {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": "3"},
            "benchmark.json: 'seeds' is '3'; a whole number is expected; restore the file",
        ),
        ({"seeds": 0}, "benchmark.json: 'seeds' is 0, not a positive"),
        ({"tasks": []}, "benchmark.json: 'tasks' is empty; restore the file"),
        (
            {"methods": ["ogpo"]},
            "benchmark.json: 'methods.0' is 'ogpo'; an object is expected; restore the file",
        ),
        (
            {"tasks": [{"label": "a"}] * 2},
            "benchmark.json: the label 'a' is given twice in 'tasks'; name each once",
        ),
    ],
)
def test_a_plan_that_cannot_be_read_is_named_in_one_line(tmp_path, changes, message):
    with pytest.raises(ReportError, match=message) as raised:
        benchmark_page.write(planned(tmp_path / "bench", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bench" / "report").exists()


def test_a_folder_without_a_plan_and_a_malformed_one_are_refused(tmp_path):
    message = "no benchmark.json here; pass the folder that gcp-jax benchmark"
    with pytest.raises(ReportError, match=message):
        benchmark_page.write(tmp_path)
    (planned(tmp_path / "bench") / "benchmark.json").write_text("{")
    message = r"benchmark.json is not JSON \(.*\); restore the file"
    with pytest.raises(ReportError, match=message):
        benchmark_page.write(tmp_path / "bench")
