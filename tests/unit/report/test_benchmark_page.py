"""The page of a benchmark, however much of the benchmark there is."""

import csv

import pytest
from helpers.benchmark_folders import COMMAND, FAILURE, TASKS, finals, whole_benchmark
from helpers.run_folders import Page

from gcp_jax.report import benchmark_page
from gcp_jax.stats.bootstrap import probability_of_improvement
from gcp_jax.stats.intervals import Success, pooled_success


def test_every_file_is_written(partial, whole):
    assert partial.parent.name == "report"
    assert whole.parent.name == "out"
    for page in (partial, whole):
        assert sorted(path.name for path in page.parent.iterdir()) == [
            *("clones.csv", "curves.png", "curves_time.png", "intervals.png", "profile.png"),
            *("report.html", "summary.json", "table.csv", "table.tex"),
        ]
        for picture in page.parent.glob("*.png"):
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_panel_is_a_figure_of_the_page(partial):
    # two of intervals, the profile, two curves a task, and kl and q of the diagnostics of a task
    assert len(Page(partial).figures) == 2 + 1 + 2 * 2 + 2 * 2


def test_text_of_the_user_is_escaped(partial):
    page = Page(partial)
    for text in (COMMAND, f"failed: {FAILURE}", "dp&po_<i>"):
        assert text in page.text
    for text in ("<script>", "<b>critic", "po_<i>"):
        assert text not in page.source


def test_the_page_shows_what_was_run(partial):
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
    # T* = 22.5 s is a quarter of the way from 80 % after 20 s to 95 % after 30 s
    assert f"ogpo finished 40.0 % {final} a 95.0 % ≈ 83.8 %" in page.text
    assert "at T* = 22.5 s" in page.text
    assert "100 · 10.0 s 200 · 20.0 s 300 · 30.0 s 75 100 120 30.0 s" in page.text
    assert "dp&po_<i> running" not in page.text
    assert "flow_grpo running 55.0 % – – – – –" in page.text
    assert "flow_grpo 0 · 0.0 s – – 25 50 110 30.0 s" in page.text
    assert "P(row beats column) ogpo flow_grpo ogpo – 100.0 % [43.9, 100.0]" in page.text


def test_the_csv_of_a_task_holds_its_rows_of_the_table(partial):
    downloads = Page(partial).downloads
    with (partial.parent / "table.csv").open(encoding="utf-8") as file:
        heads, *rows = csv.reader(file)
    for task in TASKS:
        assert downloads[f"{task}.csv"] == [heads, *(row for row in rows if row[0] == task)]
    overall = [dict(zip(heads, row, strict=True)) for row in rows if row[0] == "all"]
    own_heads, *own_rows = downloads["all_tasks.csv"]
    assert own_rows == [[line[name] for name in own_heads] for line in overall]
    assert {"task", "method", "state", "iqm", "iqm_low", "train_seconds"} <= set(own_heads)


@pytest.mark.parametrize(("method", "gamma"), [("ogpo", 0.97), ("flow_grpo", 0.99)])
def test_each_configuration_starts_with_what_not_all_share(partial, method, gamma):
    section = Page(partial).text.split(f"peg_insert · {method}")[1]
    words = "Not the same in every method of this task:"
    table = f'{words} algorithm.name "{method}" algorithm.gamma {gamma} CSV'
    assert section.split("{")[0].strip() == table


def test_who_beats_whom_is_in_the_page(whole):
    text = Page(whole).text.split("Who beats whom")[1]
    for first, second in (("ogpo", "flow_grpo"), ("flow_grpo", "dp&po_<i>")):
        assert probability_of_improvement(finals(first), finals(second)).percent() in text


@pytest.mark.usefixtures("no_png")
def test_one_seed_beats_no_other_and_the_page_says_what_its_intervals_are(tmp_path):
    written = benchmark_page.write(whole_benchmark(tmp_path / "bench", seeds=1))
    page = Page(written)
    assert "One seed was trained of each method: every interval is that of its evaluation" in (
        page.text
    )
    assert "Who beats whom" not in page.text
    assert not any("P(row beats column)" in figure for figure in page.figures)
    assert "95 % bootstrap" not in page.text
    assert "1 seed × 2 tasks" in page.source
    tex = (written.parent / "table.tex").read_text(encoding="utf-8")
    assert "% Final success (%), 1 seed, 95 % intervals of its episodes" in tex
