"""Rows that were cut off or deleted are found, by stage and file."""

import json

import pytest
from helpers.run_configs import small_config

from gcp_jax.config import to_dict
from gcp_jax.run import metrics
from gcp_jax.run.row_gaps import find_gaps
from gcp_jax.run.sizes import Cadence

PRETRAIN = Cadence("pretrain", 3, 0, 50, 0, 1, 1)
FINETUNE = Cadence("finetune", 6, 64, 4, 1, 2, 2)


def begun(folder, **fields):
    """The folder of a run of two seeds, without rows."""
    config = to_dict(small_config(seeds=2, **fields))
    cadences = {"pretrain": PRETRAIN._asdict(), "finetune": FINETUNE._asdict()}
    (folder / "config.json").write_text(json.dumps({"config": config, "cadences": cadences}))
    return folder


def write_rows(folder, pretrain=3, finetune=6, labels=("",)):
    """The rows of a run, as its stages write them."""
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        for clock in range(1, pretrain + 1):
            counters = PRETRAIN.counters(clock)
            writer.write({"stage": "pretrain", "seed": 0, **counters, "train/loss": 1.0})
            for seed in (0, 1):
                row = {"stage": "pretrain", "seed": seed, **counters}
                writer.write(row | {"eval/success": 0.5})
        for seed in (0, 1):
            row = {"stage": "base", "seed": seed, "env_steps": 0, "updates": 0}
            writer.write(row | {"eval/success": 0.5})
        for clock in range(1, finetune + 1):
            for label in labels:
                for seed in (0, 1):
                    row = {"stage": "finetune", "seed": seed, **FINETUNE.counters(clock)}
                    if label:
                        row["population"] = label
                    writer.write(row | {"train/loss": 1.0})
                    if FINETUNE.evaluates(clock):
                        writer.write(row | {"eval/success": 0.5})


def add_checkpoints(folder, pretrain=3, finetune=6):
    for stage, clock in (("pretrain", pretrain), ("finetune", finetune)):
        path = folder / "checkpoints" / stage / str(clock)
        path.mkdir(parents=True)
        (path / "_CHECKPOINT_METADATA").touch()


def cut(path, count):
    """Delete lines at the end."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-count]))


@pytest.fixture
def folder(tmp_path):
    begun(tmp_path)
    write_rows(tmp_path)
    add_checkpoints(tmp_path)
    return tmp_path


def test_whole_files_have_no_gap(folder):
    assert find_gaps(folder) == []
    (folder / "summary.json").write_text('{"env_steps": 384}')
    assert find_gaps(folder) == []


def test_a_run_that_has_just_begun_has_no_gap(tmp_path):
    assert find_gaps(begun(tmp_path)) == []


def test_rows_after_the_checkpoint_may_be_missing(tmp_path):
    """They are written again."""
    begun(tmp_path)
    write_rows(tmp_path, finetune=4)
    add_checkpoints(tmp_path, finetune=4)
    assert find_gaps(tmp_path) == []


def test_cut_rows_are_found(folder):
    cut(folder / "metrics.jsonl", 4)
    [gap] = find_gaps(folder)
    assert str(gap) == (
        "metrics.jsonl lacks 4 of the 12 rows of finetune (at 320 to 384 env steps)"
    )


def test_a_deleted_file_is_found(folder):
    (folder / "eval.jsonl").unlink()
    assert [str(gap) for gap in find_gaps(folder)] == [
        "eval.jsonl lacks 6 of the 6 rows of pretrain (at 50 to 150 updates)",
        "eval.jsonl lacks 2 of the 2 rows of base (at 0 env steps)",
        "eval.jsonl lacks 6 of the 6 rows of finetune (at 128 to 384 env steps)",
    ]


def test_a_finished_run_needs_its_rows_without_checkpoints_too(tmp_path):
    begun(tmp_path)
    write_rows(tmp_path, finetune=5)
    (tmp_path / "summary.json").write_text('{"env_steps": 384}')
    assert [gap.first for gap in find_gaps(tmp_path)] == [384, 384]


def test_a_clone_alone_lacks_nothing(tmp_path):
    begun(tmp_path)
    write_rows(tmp_path, finetune=0)
    (tmp_path / "summary.json").write_text("{}")
    assert find_gaps(tmp_path) == []


def test_a_population_has_rows_of_every_point(tmp_path):
    begun(tmp_path, population={"critic_lr": (1e-4, 3e-4)})
    labels = ("critic_lr=0.0001", "critic_lr=0.0003")
    write_rows(tmp_path, labels=labels)
    add_checkpoints(tmp_path)
    assert find_gaps(tmp_path) == []
    text = (tmp_path / "eval.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in text if f'"{labels[1]}"' not in line]
    (tmp_path / "eval.jsonl").write_text("".join(kept))
    [gap] = find_gaps(tmp_path)
    assert (gap.missing, gap.written) == (6, 12)


def test_a_run_of_a_version_without_the_record_has_no_known_gap(folder):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    del record["cadences"]
    path.write_text(json.dumps(record))
    (folder / "eval.jsonl").unlink()
    assert find_gaps(folder) == []
