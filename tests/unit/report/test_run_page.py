"""The page shows what the files of a run hold, whatever is missing."""

import base64
import csv
import json

import pytest
from helpers.run_folders import (
    COMMAND,
    Page,
    evaluation,
    finished,
    row,
    scored_by_return,
    started,
    stopped,
    with_demonstrations,
)

from gcp_jax.report import run_page
from gcp_jax.report.read import ReportError, read_run
from gcp_jax.report.run_warnings import run_warnings
from gcp_jax.run import metrics
from gcp_jax.run.sizes import Cadence
from gcp_jax.stats.intervals import difference, wilson


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with videos, its report written."""
    folder = with_demonstrations(tmp_path_factory.mktemp("runs") / "peg" / "a1b2")
    (folder / "report").mkdir()
    for name in ("before", "after"):
        (folder / "report" / f"{name}.mp4").write_bytes(name.encode())
    return run_page.write(folder)


def test_one_run_is_reported_in_its_own_folder(whole):
    assert whole.name == "report.html"
    assert whole.parent.parent.name == "a1b2"
    page = Page(whole)
    for text in (
        "flow_grpo on peg",
        "a1b2 finished",
        "jax 0.10.2",
        "3f2c1ab",
        "Seeds 0, 1",
        "40 episodes per seed from fixed start states; 0 episodes diverged",
        "pooled 50.0 % [39.3, 60.7] 100.0 % [95.4, 100.0]",
        "Wall time 2 min 12 s of it training 40.5 s of it compiling 14.2 s",
        "env steps/s before learning starts, median 90,000",  # the first segment has no update
        "env steps/s while learning, median 5,960 updates/s while learning, median 18",
        "Environment steps to 50 % 0 Environment steps to 80 % 1,280",
        "Episodes by mode 88 + 112 Success 71.5 % Mean return -61.8",
        "Trajectory quality (TQ) 0.503 State-action coverage (SACo) –",
        "95 % credible interval after finetuning seed 0: 100.0 % [94.0, 100.0]; seed 1: 100.0 %",
    ):
        assert text in page.text


@pytest.mark.usefixtures("no_png")
def test_demonstrations_are_left_out_if_no_run_has_recorded_them(tmp_path):
    page = Page(run_page.write(finished(tmp_path / "run")))
    assert "Demonstrations" not in page.text
    folders = [with_demonstrations(tmp_path / "known"), tmp_path / "run"]
    compared = Page(run_page.write(folders, tmp_path / "out"))
    assert "Episodes 200 –" in compared.text and "Success 71.5 % –" in compared.text


def test_text_of_the_user_is_escaped(whole):
    assert COMMAND in Page(whole).text
    assert "<script>" not in whole.read_text()


def test_every_panel_is_a_figure_of_the_page_and_the_curves_are_a_png_beside_it(whole):
    page = Page(whole)
    labels = ("posterior", "Evaluation success", "Success of training", "critic_loss", "flow_loss")
    for label in labels:
        assert sum(f'aria-label="{label}' in figure for figure in page.figures) == 1
    assert len(page.figures) == 7  # posterior, four learning curves, two diagnostics
    assert (whole.parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_videos_are_embedded(whole):
    videos = [
        address.split(",")[1]
        for address in Page(whole).addresses
        if address.startswith("data:video/mp4;base64,")
    ]
    assert [base64.b64decode(video) for video in videos] == [b"before", b"after"]


def test_the_table_is_also_a_csv(whole):
    with (whole.parent / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["seed"] for line in table] == ["seed 0", "seed 1", "pooled"]
    assert [float(table[-1][key]) for key in ("before", "after", "change")] == [0.5, 1.0, 0.5]
    assert 0.95 < float(table[-1]["after_low"]) < 0.96


def test_the_scores_of_a_run_can_be_downloaded_at_full_precision(whole):
    with (whole.parent / "table.csv").open() as file:
        assert Page(whole).downloads["scores_0.csv"] == list(csv.reader(file))


@pytest.mark.usefixtures("no_png")
def test_a_run_just_started_has_a_report(tmp_path):
    page = Page(run_page.write(started(tmp_path / "c3d4")))
    assert "c3d4 unfinished" in page.text
    assert "No evaluation has been written yet." in page.text
    assert "No video was recorded." in page.text


@pytest.mark.usefixtures("no_png")
def test_an_unfinished_run_shows_how_far_it_came_and_why_there_is_no_video(tmp_path):
    folder = stopped(tmp_path / "run", seeds=(0,), upto=640)
    (folder / "report").mkdir()
    (folder / "report" / "video.txt").write_text("no renderer: install <libosmesa6>\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "fine')
    page = Page(run_page.write(folder))
    assert "seed 0 50.0 % [35.2, 64.8] 75.0 % [59.8, 85.8]" in page.text
    assert "Environment steps to 80 % not reached yet" in page.text
    assert "no renderer: install <libosmesa6>" in page.text


@pytest.mark.usefixtures("no_png")
def test_several_runs_are_compared_under_their_labels(tmp_path):
    folders = [
        finished(tmp_path / "peg" / "a1b2"),
        stopped(tmp_path / "peg" / "c3d4", upto=640, label="_dppo $\\frac <b>"),
        started(tmp_path / "peg" / "e5f6"),
    ]
    page = Page(run_page.write(folders, tmp_path / "out"))
    assert "3 runs compared" in page.text
    assert "a1b2 _dppo $\\frac <b> e5f6" in page.text
    assert "Success after 100.0 % [95.4, 100.0] 75.0 % [64.5, 83.2] –" in page.text
    assert "P(a seed beats one of a1b2) – 0.0 % [0.0, 65.8] –" in page.text
    assert "env steps/s while learning, median 5,960 5,640 –" in page.text
    assert "Environment steps to 80 % 1,280 not reached yet not reached yet" in page.text
    assert "<b>" not in page.source
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curves.png",
        "report.html",
        "table.csv",
    ]


@pytest.mark.usefixtures("no_png")
def test_a_task_without_success_is_reported_by_its_return(tmp_path):
    run = scored_by_return(tmp_path / "hopper", {0: 900.0, 640: 1500.0, 1280: 2310.0})
    text = Page(run_page.write(run)).text
    assert "Return before and after finetuning" in text
    assert "901 return before 2,311 return after +1,410 change" in text
    assert "0 to 2,333" in text
    assert "Environment steps to" not in text
    content = text.partition("Intervals are 95 %.")[0]  # the notes explain both scores
    assert "success" not in content.lower()
    other = scored_by_return(tmp_path / "other", {0: 900.0, 1280: 3000.0})
    text = Page(run_page.write([run, other], tmp_path / "both")).text
    assert "Return after 2,311 [" in text and "Interquartile mean of the seeds 2,311" in text


@pytest.mark.usefixtures("no_png")
def test_runs_with_the_same_name_are_distinguished_by_their_parents(tmp_path):
    folders = [started(tmp_path / parent / "a1b2") for parent in ("peg", "reach")]
    assert "a1b2 · peg/a1b2 a1b2 · reach/a1b2" in Page(run_page.write(folders, tmp_path)).text


def test_an_error_says_which_folders_to_pass(tmp_path):
    folder = started(tmp_path / "run")
    with pytest.raises(ReportError, match="no config.json here; pass the folder of a run"):
        run_page.write(tmp_path)
    with pytest.raises(ReportError, match="several and an output folder"):
        run_page.write([folder, folder])
    with pytest.raises(ReportError, match="the same run folder is given twice"):
        run_page.write([folder, folder], tmp_path)


@pytest.mark.usefixtures("no_png")
def test_rows_that_are_missing_and_code_that_changed_are_marked(tmp_path):
    folder = finished(tmp_path / "run", seed=0, population={})
    record = json.loads((folder / "config.json").read_text())
    record["config"]["seeds"] = 2
    pretrain = Cadence("pretrain", 1, 0, 10, 0, 1, 1)
    finetune = Cadence("finetune", 2, 640, 80, 0, 1, 1)
    record["cadences"] = {each.name: each._asdict() for each in (pretrain, finetune)}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "summary.json").write_text(json.dumps({"env_steps": 1280}))
    assert run_warnings([read_run(folder)]) == []

    record["earlier_code"] = [{"my_method": "old"}]
    (folder / "config.json").write_text(json.dumps(record))
    kept = (folder / "eval.jsonl").read_text().splitlines(keepends=True)[:-1]
    (folder / "eval.jsonl").write_text("".join(kept))
    text = Page(run_page.write(folder)).text
    gap = "eval.jsonl lacks 1 of the 4 rows of finetune (at 1,280 env steps)"
    assert f"Note: run: {gap}: they were deleted." in text
    assert "Note: run: its code changed before it was finished." in text


@pytest.mark.usefixtures("no_png")
def test_decay_and_inflating_critics_are_warnings(tmp_path):
    """Of 40 episodes the base solves 20. Returns are of size 3, so that a gap above 1.5 counts."""
    folder = started(tmp_path / "run")
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        writer.write(evaluation("base", 0, 0, 20))
        for number, successes in enumerate((1, 19, 20, 20), start=1):
            steps = 640 * number
            gap = {"train/q_minus_return": 0.6 * number}
            writer.write(row("finetune", 0, steps, steps // 8, **gap))
            set_back = {"eval/restored_to": 0} if number == 1 else {}
            writer.write(evaluation("finetune", 0, steps, successes) | set_back)
    (folder / "stopped.json").write_text(json.dumps({"reason": "stopped at 64 env steps."}))
    assert read_run(folder).state == "stopped"
    text = Page(run_page.write(folder)).text
    assert "Note: run: stopped at 64 env steps." in text
    assert "Note: run: seed 0 was below its base policy from 640 to 1,920 env steps." in text
    assert "Note: run: seed 0 was set back at 640 env steps to its state of 0" in text
    assert (
        "Note: run: seed 0 has critics that overestimate more and more at 1,920 env steps: "
        "Q − realised return is 1.8, and returns are of size 3."
    ) in text


@pytest.mark.usefixtures("no_png")
def test_best_policies_are_shown_with_both_scores_and_the_bias(tmp_path):
    folder = finished(tmp_path / "run")
    scores = {"selected": 0.9, "fresh": 0.8, "fresh_low": 0.7, "fresh_high": 0.85}
    members = [
        {"seed": 0, "env_steps": 640, "is_base": False, "evaluations": 3, **scores},
        {"seed": 1, "env_steps": 0, "is_base": True, "evaluations": 3, **scores},
    ]
    summary = folder / "summary.json"
    content = {**json.loads(summary.read_text()), "best": {"members": members}}
    summary.write_text(json.dumps(content))
    page = Page(run_page.write(folder))
    [table] = [table for table in page.tables if "on fresh start states" in table[0]]
    assert table[1] == ["seed 0", "640", "3", "90.0 %", "80.0 % [70.0, 85.0]"]
    assert table[2][:2] == ["seed 1", "base policy"]
    assert "it is biased upwards" in page.text
    del members[0]["fresh"]
    summary.write_text(json.dumps(content))
    with pytest.raises(ReportError, match="summary.json: .*fresh"):
        read_run(folder)


@pytest.mark.usefixtures("no_png")
def test_with_one_seed_an_interval_is_that_of_its_episodes_and_says_so(tmp_path):
    folders = [
        finished(tmp_path / "a", seeds=(0,)),
        stopped(tmp_path / "b", seeds=(0,), upto=640),
    ]
    page = Page(run_page.write(folders, tmp_path / "out"))
    comparison = page.tables[0]
    assert ["Success after", wilson(40, 40).percent(), wilson(30, 40).percent()] in comparison
    assert ["Seeds", "1", "1"] in comparison
    facts = [line[0] for line in comparison]
    assert not any(fact.startswith(("P(", "Interquartile")) for fact in facts)
    said = "One seed was trained: its interval is that of its 40 episodes and does not cover other"
    assert page.text.count(said) == 2


@pytest.mark.usefixtures("no_png")
def test_a_run_of_one_seed_is_not_compared_by_its_seeds_with_one_of_several(tmp_path):
    folders = [finished(tmp_path / "a"), finished(tmp_path / "b", seeds=(0,))]
    page = Page(run_page.write(folders, tmp_path / "out"))
    comparison = {line[0]: line[1:] for line in page.tables[0]}
    assert comparison["Interquartile mean of the seeds"] == [wilson(80, 80).percent(), "–"]
    assert not any(fact.startswith("P(") for fact in comparison)


@pytest.mark.usefixtures("no_png")
def test_the_seeds_of_one_clone_are_episodes_of_one_policy(tmp_path):
    """The clone has 10 and 30 of 40 successes on the start states of two seeds."""
    folder = started(tmp_path / "run")
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        for seed, before in ((0, 10), (1, 30)):
            writer.write(evaluation("base", seed, 0, before))
            writer.write(evaluation("finetune", seed, 640, 38))
    page = run_page.write(folder)
    with (page.parent / "table.csv").open() as file:
        pooled = list(csv.DictReader(file))[-1]
    before = wilson(40, 80)
    found = [float(pooled[f"before{bound}"]) for bound in ("", "_low", "_high")]
    assert found == pytest.approx(before)
    change = difference(wilson(76, 80), before)  # both seeds agree after finetuning
    found = [float(pooled[f"change{bound}"]) for bound in ("", "_low", "_high")]
    assert found == pytest.approx(change)
    text = Page(page).text
    assert "its interval is that of all its 80 episodes and does not cover other clones" in text
    assert "covers seeds that were not trained, from the 2 that were" in text


def test_different_tasks_are_not_compared(tmp_path):
    folders = [
        finished(tmp_path / "a"),
        finished(tmp_path / "b", env={"name": "push_t"}),
    ]
    message = "a is on peg and b on push_t; different tasks are not compared: report the runs of"
    with pytest.raises(ReportError, match=message) as raised:
        run_page.write(folders, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_png")
def test_settings_of_a_task_that_differ_are_shown(tmp_path):
    folders = [
        finished(tmp_path / name, env={"name": "peg", "clearance_mm": width, "horizon": 80})
        for name, width in (("a", 0.5), ("b", 2.0))
    ]
    page = Page(run_page.write(folders, tmp_path / "out"))
    assert "Environment settings that differ clearance_mm=0.5 clearance_mm=2.0" in page.text
    assert "differ" not in Page(run_page.write(folders[0])).text.partition("Intervals are")[0]
