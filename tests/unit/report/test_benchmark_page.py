"""The report of a benchmark against numbers worked by hand, however much of the benchmark there is."""

import base64
import csv
import json

import numpy as np
import pytest
from helpers.run_folders import Page, row
from scipy import stats

from gcp_jax.report import benchmark_page, run_page
from gcp_jax.run import metrics
from gcp_jax.stats.statistics import (
    Success,
    interquartile_mean,
    packed,
    pooled_success,
    probability_of_improvement,
)

TASKS = ("peg_insert", "push_t")
METHODS = ("ogpo", "flow_grpo", "dp&po_<i>")
COMMAND = "gcp-jax benchmark --note='<script>alert(1)</script>'"
FAILURE = "FloatingPointError: <b>critic loss</b> is NaN"
STEPS = (0, 100, 200, 300)
EPISODES = 20

# [seeds, evaluations] successes of 20 episodes, and the training seconds of one interval between evaluations
RUNS = {
    ("peg_insert", "ogpo"): ([[8, 10, 16, 18], [8, 12, 18, 20], [8, 8, 14, 19]], 10),
    ("peg_insert", "flow_grpo"): ([[8, 12, 9, 10], [8, 11, 9, 11], [8, 13, 9, 9]], 5),
    ("peg_insert", "dp&po_<i>"): ([[8, 9, 9, 9], [8, 9, 9, 10], [8, 9, 9, 11]], 40),
    ("push_t", "ogpo"): ([[11, 12, 15, 17], [11, 13, 15, 16], [11, 14, 15, 18]], 20),
    ("push_t", "flow_grpo"): ([[11, 13, 14, 14], [11, 12, 14, 16], [11, 14, 13, 15]], 30),
    ("push_t", "dp&po_<i>"): ([[11, 10, 12, 20], [11, 10, 11, 20], [11, 7, 10, 20]], 50),
}


def planned(folder, **changes):
    """A benchmark of which only the plan exists."""
    plan = {
        "command": COMMAND,
        "versions": {"jax": "0.10.2"},
        "commit": "3f2c1ab",
        "seeds": 3,
        "steps": 300,
        "tasks": [{"label": task, "env": task} for task in TASKS],
        "methods": [{"label": label, "algorithm": label[:4]} for label in METHODS],
    }
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps({**plan, **changes}))
    return folder


def ran(folder, task, method, upto=300, finished=True):
    """Adds the folder of one run, killed after ``upto`` environment steps unless finished."""
    successes, interval = RUNS[task, method]
    run = folder / task / method
    run.mkdir(parents=True)
    algorithm = {"name": method, "gamma": 0.97 if method == "ogpo" else 0.99, "same": 7}
    config = {
        "env": {"name": task},
        "algorithm": algorithm,
        "finetune": {"utd": 0.5},
        "run_dir": str(run),
    }
    (run / "config.json").write_text(json.dumps({"config": config}))
    with metrics.writers(["jsonl"], run, {}) as writer:
        for index, steps in enumerate(STEPS):
            if steps <= upto:
                write_rows(
                    writer, method, steps, [seed[index] for seed in successes], index * interval
                )
    if finished:
        (run / "summary.json").write_text('{"seconds": 99.0}')


def write_rows(writer, method, steps, successes, seconds):
    for seed, count in enumerate(successes):
        numbers = {
            "eval/success": count / EPISODES,
            "eval/successes": count,
            "eval/episodes": EPISODES,
        }
        numbers["eval/success_bits"] = packed(np.arange(EPISODES) < count)
        numbers |= (
            {"train_seconds": seconds} if steps else {}
        )  # the base rows are old ones, without it
        writer.write(row("finetune" if steps else "base", seed, steps, steps // 4, **numbers))
        numbers = {"train/kl": 0.1, "time/updates_per_s": steps / 2} | (
            {"train/q": 1.0} if method == "ogpo" else {}
        )
        writer.write(row("finetune", seed, steps, steps // 4, **numbers))


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """Four runs finished, one failed, one running."""
    folder = planned(tmp_path_factory.mktemp("partial") / "bench")
    for task, method in RUNS:
        if (task, method) == ("peg_insert", "dp&po_<i>"):
            ran(folder, task, method, upto=200, finished=False)
            (folder / task / method / "failed.txt").write_text(FAILURE + "\n")
        else:
            running = (task, method) == ("push_t", "flow_grpo")
            ran(folder, task, method, upto=100 if running else 300, finished=not running)
    return benchmark_page.write(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All six finished. Its pictures are drawn but not rendered, which takes longest: ``partial`` has real ones."""
    folder = planned(tmp_path_factory.mktemp("whole") / "bench")
    for task, method in RUNS:
        ran(folder, task, method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_page, "png_bytes", lambda figure: b"\x89PNG")
        return benchmark_page.write(folder, folder.parent / "out")


def table(page):
    with (page.parent / "table.csv").open(encoding="utf-8") as file:
        return {(line["task"], line["method"]): line for line in csv.DictReader(file)}


def numbers(line, *names):
    return [float(line[name]) for name in names]


def finals(method, tasks=TASKS):
    """[seeds, tasks] final success."""
    return np.asarray([[seed[-1] / EPISODES for seed in RUNS[task, method][0]] for task in tasks]).T


def test_every_file_is_written(partial, whole):
    assert partial.parent.name == "report"
    assert whole.parent.name == "out"
    for page in (partial, whole):
        assert sorted(path.name for path in page.parent.iterdir()) == [
            *("curves.png", "curves_time.png", "intervals.png", "profile.png"),
            *("report.html", "table.csv", "table.tex"),
        ]
        for picture in page.parent.glob("*.png"):
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_methods_that_were_told_apart_on_the_same_starts_share_no_letter(whole, partial):
    """On push_t the third method wins 9 pairs of the first and loses none: p = 10/2⁹, twice that by Holm; the first wins 6 of the
    second: 7/2⁶. On peg_insert the second and third win two of each other."""
    groups = {place: line["group"] for place, line in table(whole).items()}
    assert [groups["push_t", method] for method in METHODS] == ["b", "b", "a"]
    assert [groups["peg_insert", method] for method in METHODS] == ["a", "b", "b"]
    assert groups["all", "ogpo"] == ""
    unfinished = {place: line["group"] for place, line in table(partial).items()}
    assert unfinished["peg_insert", "dp&po_<i>"] == "" and unfinished["peg_insert", "ogpo"] == "a"


def test_the_page_needs_no_network_and_no_script(partial):
    page = Page(partial)
    assert not {"script", "link"} & set(page.tags)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert all(
        base64.b64decode(address.split(",")[1]).startswith(b"\x89PNG") for address in page.addresses
    )
    assert (
        len(set(page.addresses)) == 12
    )  # four figures and the diagnostics of two tasks, light and dark
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_text_of_the_user_is_escaped(partial):
    page = Page(partial)
    for text in (COMMAND, f"failed: {FAILURE}", "dp&po_<i>"):
        assert text in page.text
    for text in ("<script>", "<b>critic", "po_<i>"):
        assert text not in page.source


def test_the_page_tells_what_was_run(partial):
    page = Page(partial)
    for text in (
        "3 methods on 2 tasks bench 4 of 6 runs finished, 1 failed",
        "Methods ogpo, flow_grpo (flow), dp&po_<i> (dp&p) Seeds 3 Environment steps per seed 300",
        "20 episodes per seed from fixed start states",
        "jax 0.10.2",
        "3f2c1ab",
    ):
        assert text in page.text


def test_the_page_shows_the_tables(partial):
    page = Page(partial)
    final = pooled_success([Success(18, 20), Success(20, 20), Success(19, 20)]).percent()
    assert f"ogpo finished 40.0 % {final} a 95.0 % 80.0 %" in page.text
    assert "at T* = 22.5 s" in page.text
    assert "100 · 10.0 s 200 · 20.0 s 300 · 30.0 s 75 100 30.0 s" in page.text
    assert "dp&po_<i> running" not in page.text
    assert "flow_grpo running 55.0 % – – – – – 0 · 0.0 s – – 25 50 30.0 s" in page.text
    assert "P(row beats column) ogpo flow_grpo ogpo – 100.0 % [100.0, 100.0]" in page.text


@pytest.mark.parametrize(("method", "gamma"), [("ogpo", 0.97), ("flow_grpo", 0.99)])
def test_each_configuration_starts_with_what_not_all_share(partial, method, gamma):
    own = Page(partial).text.split(f"peg_insert · {method}")[1].split("{")[0].strip()
    words = "Not the same in every method of this task:"
    assert own == f'{words} algorithm.name "{method}" algorithm.gamma {gamma}'


def test_the_state_of_every_run_is_told(partial):
    states = {key: line["state"] for key, line in table(partial).items()}
    assert states["peg_insert", "ogpo"] == "finished"
    assert states["peg_insert", "dp&po_<i>"] == f"failed: {FAILURE}"
    assert states["push_t", "flow_grpo"] == "running"
    assert states["all", "ogpo"] == "over 1 of 2 tasks"  # the other is still running
    assert states["all", "dp&po_<i>"] == "not finished on every task"


def test_what_may_still_change_is_left_open(partial):
    for key in (("push_t", "flow_grpo"), ("peg_insert", "dp&po_<i>")):
        line = table(partial)[key]
        assert [
            line[name] for name in ("final", "best", "equal_compute", "iqm", "steps_to_80")
        ] == [""] * 5
    running = table(partial)["push_t", "flow_grpo"]
    assert numbers(running, "base", "env_steps", "steps_to_50", "train_seconds") == pytest.approx(
        [0.55, 100, 0, 30]
    )


def test_rows_of_the_table_by_hand(whole):
    for (task, method), (successes, interval) in RUNS.items():
        line, rates = table(whole)[task, method], np.mean(successes, axis=0) / EPISODES
        assert numbers(line, "base", "final", "best") == pytest.approx(
            [rates[0], rates[-1], rates.max()]
        )
        counts = [Success(seed[-1], EPISODES) for seed in successes]
        assert numbers(line, "final", "final_low", "final_high") == pytest.approx(
            pooled_success(counts)
        )
        expected = interquartile_mean(finals(method, (task,)))
        assert numbers(line, "iqm", "iqm_low", "iqm_high") == pytest.approx(expected)
        measured = numbers(line, "env_steps", "updates", "updates_per_s", "train_seconds")
        assert measured == [
            300,
            75,
            100,
            3 * interval,
        ]  # the median of 50, 100 and 150: the zero is left out


@pytest.mark.parametrize(
    ("task", "method", "expected"),
    [  # T* is 30 s on peg_insert, 90 s on push_t
        ("peg_insert", "ogpo", 0.95),  # its end, at 30 s exactly
        ("peg_insert", "flow_grpo", 0.5),  # it was done after 15 s
        ("peg_insert", "dp&po_<i>", 0.4),  # the first evaluation comes after 40 s: the base
        ("push_t", "ogpo", 0.85),  # it was done after 60 s
        ("push_t", "flow_grpo", 0.75),  # its end, at 90 s exactly
        ("push_t", "dp&po_<i>", 0.45),  # after 50 s
    ],
)
def test_success_at_equal_compute_by_hand(whole, task, method, expected):
    assert float(table(whole)[task, method]["equal_compute"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "method", "steps", "seconds"),
    [
        ("peg_insert", "ogpo", ["100", "200", "300"], ["10", "20", "30"]),
        (
            "peg_insert",
            "flow_grpo",
            ["100", "not reached", "not reached"],
            ["5", "not reached", "not reached"],
        ),
        ("push_t", "ogpo", ["0", "300", "not reached"], ["0", "60", "not reached"]),
        ("push_t", "dp&po_<i>", ["0", "300", "300"], ["0", "150", "150"]),
    ],
)
def test_steps_and_seconds_to_thresholds_by_hand(whole, task, method, steps, seconds):
    line = table(whole)[task, method]
    assert [line[f"steps_to_{percent}"] for percent in (50, 80, 90)] == steps
    assert [line[f"seconds_to_{percent}"] for percent in (50, 80, 90)] == seconds


def test_rows_over_all_tasks(whole):
    lines = table(whole)
    for method in METHODS:
        line, scores = lines["all", method], finals(method)
        assert line["state"] == "over 2 of 2 tasks"
        assert float(line["iqm"]) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
        assert numbers(line, "iqm", "iqm_low", "iqm_high") == pytest.approx(
            interquartile_mean(scores)
        )
        assert float(line["final"]) == pytest.approx(scores.mean())
        for name in ("base", "best", "equal_compute"):
            assert float(line[name]) == pytest.approx(
                np.mean([float(lines[task, method][name]) for task in TASKS])
            )
        assert float(line["train_seconds"]) == sum(3 * RUNS[task, method][1] for task in TASKS)


def test_who_beats_whom_is_in_the_page(whole):
    text = Page(whole).text.split("Who beats whom")[1]
    for first, second in (("ogpo", "flow_grpo"), ("flow_grpo", "dp&po_<i>")):
        assert probability_of_improvement(finals(first), finals(second)).percent() in text


def test_latex_has_a_column_per_task_and_one_for_the_aggregate(partial, whole):
    for page in (partial, whole):
        tex = (page.parent / "table.tex").read_text(encoding="utf-8")
        assert r"\begin{tabular}{lccc}" in tex
        lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 2 + len(METHODS)
        assert all(line.replace(r"\&", "").count("&") == 3 for line in lines)
        assert lines[0] == r"Method & peg\_insert & push\_t & IQM \\"
        assert lines[-1].startswith(r"dp\&po\_\textless{}i\textgreater{} & ")


def test_latex_shows_the_best_of_a_column_in_bold_and_why_a_number_is_missing(partial, whole):
    lines = (whole.parent / "table.tex").read_text(encoding="utf-8").splitlines()
    ogpo, flow, third = (
        next(line for line in lines if line.startswith(name)) for name in ("ogpo", "flow", "dp")
    )
    assert r"\textbf{95.0}" in ogpo
    assert r"\textbf" not in flow
    assert r"\textbf{100.0}" in third
    assert "base policy & 40.0 & 55.0 & 47.5" in "\n".join(lines)
    tex = (partial.parent / "table.tex").read_text(encoding="utf-8")
    assert r" & \emph{failed} & " in tex
    assert r" & \emph{running} & " in tex
    assert "IQM over 1 of 2 tasks" in tex


def test_a_benchmark_just_started_has_a_report(tmp_path):
    page = benchmark_page.write(planned(tmp_path / "bench", tasks=[{"label": "only"}]))
    assert "0 of 3 runs finished" in Page(page).text
    assert {line["state"] for line in table(page).values()} == {
        "not run yet",
        "not finished on every task",
    }
    assert r"ogpo & \emph{not run yet} & \emph{--} \\" in (page.parent / "table.tex").read_text(
        encoding="utf-8"
    )


def entry(tmp_path, **changes):
    """The run of ogpo on peg_insert, after ``changes`` to its benchmark's plan."""
    folder = planned(tmp_path / "bench", **changes)
    ran(folder, "peg_insert", "ogpo")
    return benchmark_page._read(folder).entries["peg_insert", 0]


def test_a_finished_run_without_all_its_seeds_has_no_score(tmp_path):
    assert entry(tmp_path, seeds=4)[1::2] == ("failed: 3 of 4 seeds were evaluated", ())


def test_times_that_a_run_did_not_write_are_not_known(tmp_path):
    known = entry(tmp_path)
    points = tuple(point._replace(seconds=np.nan) for point in known.points[1:])
    old = benchmark_page._row(known._replace(points=(known.points[0], *points)), 20.0)
    names = ("final", "equal_compute", "steps_to_80", "seconds_to_80", "train_seconds")
    assert [old[name] for name in names] == [pytest.approx(0.95), None, 200, None, None]


def test_methods_are_told_apart_by_color_and_line():
    for theme in (run_page.LIGHT, run_page.DARK):
        colors = [benchmark_page._color(theme, index) for index in range(8)]
        assert len(set(colors)) == 8
        assert theme.paper not in colors
    lines = {
        (benchmark_page._color(run_page.LIGHT, i), benchmark_page._dashes(i)) for i in range(32)
    }
    assert len(lines) == 32


def test_a_failure_of_an_earlier_try_is_forgotten_once_the_run_has_finished(tmp_path):
    folder = planned(tmp_path / "bench")
    run = folder / "peg_insert" / "ogpo"
    ran(folder, "peg_insert", "ogpo", upto=100, finished=False)
    (run / "failed.txt").write_text("out of\nmemory\n")
    assert benchmark_page._read(folder).entries["peg_insert", 0].state == "failed: out of memory"
    (run / "summary.json").write_text('{"seconds": 99.0}')
    assert benchmark_page._read(folder).entries["peg_insert", 0].state == "finished"


def test_without_a_settled_task_those_that_some_method_finished_are_compared(tmp_path):
    folder = planned(tmp_path / "bench")
    for task in TASKS:
        ran(folder, task, "flow_grpo")
    ran(folder, "push_t", "ogpo")
    aggregate = benchmark_page._aggregate(benchmark_page._read(folder))
    assert (aggregate.tasks, list(aggregate.iqm), aggregate.better) == (TASKS, [1], {})


def test_what_latex_would_read_as_a_command_is_escaped():
    assert benchmark_page._tex("a_b%&#${}") == r"a\_b\%\&\#\$\{\}"
    assert benchmark_page._tex("\\~^<>") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": "3"},
            "benchmark.json: 'seeds' is '3', not a positive whole number; restore the file",
        ),
        ({"seeds": 0}, "benchmark.json: 'seeds' is 0, not a positive"),
        ({"tasks": []}, "benchmark.json: 'tasks' must be a list of objects with a 'label' each"),
        (
            {"methods": ["ogpo"]},
            "benchmark.json: 'methods' must be a list of objects with a 'label' each",
        ),
        (
            {"tasks": [{"label": "a"}] * 2},
            "benchmark.json: the label 'a' is given twice in 'tasks'; name each once",
        ),
    ],
)
def test_a_plan_that_cannot_be_read_is_told_in_one_line(tmp_path, changes, message):
    with pytest.raises(run_page.ReportError, match=message) as raised:
        benchmark_page.write(planned(tmp_path / "bench", **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bench" / "report").exists()


def test_a_folder_without_a_plan_and_a_malformed_one_are_told(tmp_path):
    with pytest.raises(
        run_page.ReportError, match="no benchmark.json here; pass the folder that gcp-jax benchmark"
    ):
        benchmark_page.write(tmp_path)
    (planned(tmp_path / "bench") / "benchmark.json").write_text("{")
    with pytest.raises(
        run_page.ReportError, match=r"benchmark.json: not JSON \(.*\); restore the file"
    ):
        benchmark_page.write(tmp_path / "bench")
