"""Rows survive crashes and resumes; the optional writers receive what the file does."""

import json
import math
import re
import sys

import numpy as np
import pytest

from gcp_jax.run import metrics


def row(stage="finetune", seed=0, env_steps=0, updates=0, **numbers):
    return {
        "stage": stage,
        "seed": seed,
        "env_steps": env_steps,
        "updates": updates,
        "seconds": 0.5,
        **numbers,
    }


def write(path, written):
    writer = metrics.JsonlWriter(path)
    for each in written:
        writer.write(each)
    writer.close()


def test_rows_come_back_as_written(tmp_path):
    written = [row(env_steps=2**40, **{"train/loss": 0.1 + 0.2}), row(stage="pretrain", updates=7)]
    write(tmp_path / "metrics.jsonl", written)
    assert metrics.rows(tmp_path / "metrics.jsonl") == written


def test_a_row_is_in_the_file_before_the_writer_closes(tmp_path):
    writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write(row())
    assert metrics.rows(tmp_path / "metrics.jsonl") == [row()]
    writer.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_non_finite_numbers_are_null_in_the_file_and_nan_when_read(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    write(path, [row(**{"train/loss": value})])
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["train/loss"] is None
    assert math.isnan(metrics.rows(path)[0]["train/loss"])


def test_scalar_arrays_are_written_as_numbers(tmp_path):
    write(
        tmp_path / "m.jsonl", [row(**{"train/loss": np.float32(0.5), "train/count": np.asarray(3)})]
    )
    assert metrics.rows(tmp_path / "m.jsonl") == [row(**{"train/loss": 0.5, "train/count": 3})]


@pytest.mark.parametrize(
    ("value", "error"), [(np.zeros(3), ValueError), (None, TypeError), ([1.0], TypeError)]
)
def test_what_is_not_a_number_is_refused_and_leaves_no_half_line(tmp_path, value, error):
    writer = metrics.JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(error, match="metric 'train/loss'"):
        writer.write(row(**{"train/loss": value}))
    writer.close()
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_a_half_written_last_line_is_skipped_and_then_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [row(env_steps=1), row(env_steps=2)])
    path.write_bytes(path.read_bytes()[:-9])
    assert metrics.rows(path) == [row(env_steps=1)]
    write(path, [row(env_steps=3)])
    assert metrics.rows(path) == [row(env_steps=1), row(env_steps=3)]


def test_a_broken_line_before_the_last_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"seed": 0}\n[1]\n{"seed": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object"):
        metrics.rows(path)


def test_a_missing_file_has_no_rows_and_stays_missing(tmp_path):
    metrics.truncate_after(tmp_path / "metrics.jsonl", lambda row: True)
    assert metrics.rows(tmp_path / "metrics.jsonl") == []
    assert list(tmp_path.iterdir()) == []


def history(upto):
    """Rows of a run of two seeds: 30 updates of pretraining and ``upto`` segments of finetuning."""
    pretrain = [row("pretrain", seed, 0, updates) for updates in (10, 20, 30) for seed in (0, 1)]
    base = [row("base", seed, 0, 0, **{"eval/success": 0.5}) for seed in (0, 1)]
    finetune = [
        row("finetune", seed, 64 * i, 4 * i, **{"train/loss": 1 / i})
        for i in range(1, upto)
        for seed in (0, 1)
    ]
    return pretrain + base + finetune


@pytest.mark.parametrize(("checkpoint", "killed_at"), [(2, 4), (3, 5), (3, 9), (0, 2)])
def test_a_killed_and_resumed_file_equals_that_of_a_run_never_stopped(
    tmp_path, checkpoint, killed_at
):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, history(12))
    write(resumed, history(killed_at))
    resumed.write_bytes(resumed.read_bytes()[:-5])
    metrics.truncate_after(
        resumed, metrics.until("finetune", env_steps=64 * checkpoint, updates=4 * checkpoint)
    )
    before_checkpoint = len(history(checkpoint + 1))
    write(resumed, history(12)[before_checkpoint:])
    assert resumed.read_bytes() == whole.read_bytes()


def test_until_drops_later_stages_and_later_steps():
    keep = metrics.until("pretrain", env_steps=0, updates=20)
    assert [each["updates"] for each in history(3) if keep(each)] == [10, 10, 20, 20]
    with pytest.raises(
        ValueError, match="stage 'warmup' is unknown; choose from pretrain, base, finetune"
    ):
        metrics.until("warmup", 0, 0)


def test_the_run_writer_splits_evaluations_from_training(tmp_path):
    with metrics.make_writers(["jsonl"], tmp_path, {}) as writer:
        writer.write(row(**{"train/loss": 1.0}))
        writer.write(row(**{"eval/success": 0.5}))
    assert [list(each)[-1] for each in metrics.rows(tmp_path / "metrics.jsonl")] == ["train/loss"]
    assert [list(each)[-1] for each in metrics.rows(tmp_path / "eval.jsonl")] == ["eval/success"]


def test_an_unknown_writer_is_named_before_anything_is_opened(tmp_path):
    with pytest.raises(ValueError, match="'csv' is unknown; choose from jsonl, tensorboard, wandb"):
        metrics.make_writers(["jsonl", "csv"], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install gcp-jax\[{name}\]"):
        metrics.make_writers([name], tmp_path, {})


def events(folder):
    """(step, tag, value) of every scalar, and the steps from which earlier events are hidden."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, restarts = [], []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            scalars += [
                (event.step, value.tag, value.simple_value) for value in event.summary.value
            ]
            restarts += [event.step] if event.session_log.status == event.session_log.START else []
    return scalars, restarts


def test_tensorboard_has_one_folder_a_seed_and_hides_what_a_resume_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    for first in (64, 128):
        with metrics.make_writers(["tensorboard"], tmp_path, {}) as writer:
            for step in (first, first + 64):
                writer.write(row(seed=1, env_steps=step, updates=3, **{"train/loss": 0.5}))
            writer.write(row("pretrain", updates=first, **{"train/loss": 0.25}))
    scalars, restarts = events(tmp_path / "tensorboard" / "finetune" / "seed_1")
    assert sorted(scalars) == [(step, "train/loss", 0.5) for step in (64, 128, 128, 192)]
    assert sorted(restarts) == [64, 128]
    assert min(events(tmp_path / "tensorboard" / "pretrain" / "seed_0")[0]) == (
        64,
        "train/loss",
        0.25,
    )


class FakeWandb:
    """What the writer uses of wandb."""

    def __init__(self):
        self.settings, self.axes, self.logged, self.finished = {}, {}, [], False

    def init(self, **settings):
        self.settings = settings
        return self

    def define_metric(self, pattern, step_metric):
        self.axes[pattern] = step_metric

    def log(self, numbers):
        self.logged.append(numbers)

    def finish(self):
        self.finished = True


def test_wandb_gets_one_resumable_run_with_a_step_axis_a_stage(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = tmp_path / "peg" / "a1b2"
    with metrics.make_writers(["wandb"], folder, {"seeds": 3}) as writer:
        writer.write(row(seed=2, env_steps=64, **{"train/loss": np.float32(0.5)}))
        writer.write(row("pretrain", updates=9, **{"train/loss": 0.25}))
    assert {key: wandb.settings[key] for key in ("name", "resume", "config")} == {
        "name": "peg-a1b2",
        "resume": "allow",
        "config": {"seeds": 3},
    }
    assert wandb.axes["finetune/*"] == "finetune/step"
    assert wandb.logged == [
        {"finetune/step": 64, "finetune/train/loss/seed_2": 0.5},
        {"pretrain/step": 9, "pretrain/train/loss/seed_0": 0.25},
    ]
    assert wandb.finished


def test_wandb_ids_are_of_a_run_and_not_of_its_name(tmp_path, monkeypatch):
    """Two folders of one name have two; a resumed or moved run keeps its own."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    def id_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        metrics.make_writers(["wandb"], folder, {}).close()
        return wandb.settings["id"]

    names = ("one/exp/seed0", "two/exp/seed0", "lr=1e-4,clip=.1/a:b#c?d")
    ids = [id_of(tmp_path / name) for name in names]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert id_of(tmp_path / "moved/exp/seed0") == ids[0]
