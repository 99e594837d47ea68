"""The page tells what the files of a run hold, whatever is missing, and says which file is broken."""

import base64
import csv
import json

import matplotlib
import pytest
from helpers.run_folders import Page, row

from gcp_jax.report import run_page
from gcp_jax.run import metrics

COMMAND = "train --note='<script>alert(1)</script>'"
RATES = {0: 0.5, 640: 0.75, 1280: 1.0}  # success of every seed after so many environment steps


def evaluation(stage, seed, env_steps, successes):
    counts = {"eval/success": successes / 40, "eval/successes": successes, "eval/episodes": 40}
    return row(
        stage,
        seed,
        env_steps,
        env_steps // 8,
        **counts,
        **{"eval/return": -3.0, "eval/length": 12.0},
    )


DEMONSTRATIONS = {
    "episodes": 200, "success": 0.715, "modes": [88, 112], "return": -61.8, "trajectory_quality": 0.503, "coverage": None
}  # fmt: skip


def started(folder, **config):
    """A run folder as it is when the run has just started."""
    folder.mkdir(parents=True)
    config = {"env": {"name": "peg"}, "algorithm": "flow_grpo", **config}
    record = {
        "config": config,
        "command": COMMAND,
        "versions": {"jax": "0.10.2"},
        "commit": "3f2c1ab",
    }
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def stopped(folder, seeds=(0, 1), upto=1280, **config):
    """A run folder whose process was killed after ``upto`` environment steps."""
    started(folder, **config)
    with metrics.writers(["jsonl"], folder, {}) as writer:
        for seed in seeds:
            writer.write(row("pretrain", seed, 0, 10, **{"train/flow_loss": 1.0}))
            for steps, rate in RATES.items():
                if steps <= upto:
                    writer.write(
                        evaluation("finetune" if steps else "base", seed, steps, int(40 * rate))
                    )
                    numbers = {
                        "train/critic_loss": 10.0 ** (-steps / 500),
                        "train/kl": float("nan"),
                    }
                    numbers |= {"time/env_steps_per_s": 5000.0 + steps, "episode/success": rate}
                    writer.write(row("finetune", seed, steps, steps // 8, **numbers))
    return folder


def finished(folder, **settings):
    stopped(folder, **settings)
    (folder / "summary.json").write_text(json.dumps({"seconds": 132.4, "compile_seconds": 14.2}))
    return folder


def known(folder):
    """A finished run that knows what it cloned."""
    finished(folder)
    (folder / "policy" / "base").mkdir(parents=True)
    (folder / "policy" / "base" / "policy.json").write_text(
        json.dumps({"demonstrations": DEMONSTRATIONS})
    )
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with videos, its report written."""
    folder = known(tmp_path_factory.mktemp("runs") / "peg" / "a1b2")
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
        "Wall time 2 min 12 s of it compiling 14.2 s env steps/s, median 5,640",
        "Environment steps to 50 % 0 Environment steps to 80 % 1,280",
        "Episodes by the way they took 88 + 112 Success 71.5 % Mean return -61.8",
        "Trajectory quality (TQ) 0.503 State-action coverage (SACo) –",
        "95 % of it after finetuning seed 0: 100.0 % [94.0, 100.0]; seed 1: 100.0 %",
    ):
        assert text in page.text


def test_nothing_is_said_of_demonstrations_that_no_run_knows(tmp_path):
    page = Page(run_page.write(finished(tmp_path / "run")))
    assert "Demonstrations" not in page.text
    compared = Page(run_page.write([known(tmp_path / "known"), tmp_path / "run"], tmp_path / "out"))
    assert "Episodes 200 –" in compared.text and "Success 71.5 % –" in compared.text


def test_the_page_needs_no_network_and_no_script(whole):
    page = Page(whole)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_text_of_the_user_is_escaped(whole):
    assert COMMAND in Page(whole).text
    assert "<script>" not in whole.read_text()


def test_pictures_are_png_in_a_light_and_a_dark_version(whole):
    pictures = [
        address for address in Page(whole).addresses if address.startswith("data:image/png;base64,")
    ]
    assert (
        len(set(pictures)) == 8
    )  # posteriors, learning curves, finetuning and pretraining diagnostics
    assert all(
        base64.b64decode(picture.split(",")[1]).startswith(b"\x89PNG") for picture in pictures
    )
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


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    run_page.write(started(tmp_path / "run"))
    assert dict(matplotlib.rcParams) == before


def test_a_run_just_started_has_a_report(tmp_path):
    page = Page(run_page.write(started(tmp_path / "c3d4")))
    assert "c3d4 unfinished" in page.text
    assert "No evaluation has been written yet." in page.text
    assert "No video was recorded." in page.text


def test_an_unfinished_run_shows_how_far_it_came_and_why_there_is_no_video(tmp_path):
    folder = stopped(tmp_path / "run", seeds=(0,), upto=640)
    (folder / "report").mkdir()
    (folder / "report" / "video.txt").write_text("no renderer: install <libosmesa6>\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "fine')
    page = Page(run_page.write(folder))
    assert "seed 0 50.0 % [35.2, 64.8] 75.0 % [59.8, 85.8]" in page.text
    assert "Environment steps to 80 % not reached" in page.text
    assert "no renderer: install <libosmesa6>" in page.text


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
    assert "P(a seed beats one of a1b2) – 0.0 % [0.0, 0.0] –" in page.text
    assert "env steps/s, median 5,640 5,320 –" in page.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curves.png",
        "report.html",
        "table.csv",
    ]


def by_return(folder, returns):
    """A run of two seeds on a task that is score_name by its return."""
    started(folder)
    with metrics.writers(["jsonl"], folder, {}) as writer:
        for seed in (0, 1):
            for steps, value in returns.items():
                numbers = {
                    "eval/return": value + 2 * seed,
                    "eval/return_std": 40.0,
                    "eval/episodes": 16,
                }
                writer.write(
                    row("finetune" if steps else "base", seed, steps, steps // 8, **numbers)
                )
    return folder


def test_a_task_without_success_is_reported_by_its_return(tmp_path):
    run = by_return(tmp_path / "hopper", {0: 900.0, 640: 1500.0, 1280: 2310.0})
    text = Page(run_page.write(run)).text
    assert (
        "Return before and after finetuning" in text
        and "901 return before 2,311 return after +1,410 change" in text
    )
    assert (
        "0 to 2,333" in text
        and "success" not in text.lower()
        and "Environment steps to" not in text
    )
    other = by_return(tmp_path / "other", {0: 900.0, 1280: 3000.0})
    text = Page(run_page.write([run, other], tmp_path / "both")).text
    assert "Return after 2,311 [" in text and "Interquartile mean of the seeds 2,311" in text


def test_success_and_return_are_not_put_side_by_side(tmp_path):
    runs = [by_return(tmp_path / "hopper", {0: 900.0}), finished(tmp_path / "peg")]
    with pytest.raises(
        run_page.ReportError, match="peg is score_name by its success and hopper by its return"
    ):
        run_page.write(runs, tmp_path / "both")


def test_runs_with_the_same_name_are_told_apart_by_their_parents(tmp_path):
    folders = [started(tmp_path / parent / "a1b2") for parent in ("peg", "reach")]
    assert "a1b2 · peg/a1b2 a1b2 · reach/a1b2" in Page(run_page.write(folders, tmp_path)).text


def test_what_folders_to_pass_is_said(tmp_path):
    folder = started(tmp_path / "run")
    with pytest.raises(run_page.ReportError, match="no config.json here; pass the folder of a run"):
        run_page.write(tmp_path)
    with pytest.raises(run_page.ReportError, match="several and an output folder"):
        run_page.write([folder, folder])
    with pytest.raises(run_page.ReportError, match="the same run folder is given twice"):
        run_page.write([folder, folder], tmp_path)


GOOD = json.dumps(evaluation("base", 0, 0, 3))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config.json: not JSON \(.*\); restore the file"),
        ("config.json", "[]", "config.json: not a JSON object; restore the file"),
        ("config.json", "{}", "config.json: no 'config' object; restore the file"),
        ("summary.json", "nope", "summary.json: not JSON"),
        (
            "metrics.jsonl",
            "nope\n{}\n",
            "metrics.jsonl, line 1: not a JSON object; delete the line",
        ),
        (
            "metrics.jsonl",
            '{"stage": "warmup"}\n',
            "row 1: 'stage' must be one of pretrain, base, finetune",
        ),
        (
            "eval.jsonl",
            GOOD.replace("40", '"x"') + "\n",
            "eval.jsonl, row 1: 'eval/episodes' must be a number",
        ),
        (
            "eval.jsonl",
            GOOD.replace("40", "2") + "\n",
            "eval.jsonl: seed 0 has 3 successes of 2 episodes",
        ),
    ],
)
def test_a_malformed_file_is_named_in_one_line(tmp_path, file, content, message):
    (started(tmp_path / "run") / file).write_text(content)
    with pytest.raises(run_page.ReportError, match=message) as raised:
        run_page.write(tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "report").exists()
