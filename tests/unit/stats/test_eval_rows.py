"""Scores of evaluation rows: before and after, per seed and task, and the stored success bits."""

import numpy as np
import pytest

from gcp_jax.stats.eval_rows import before_after, pack_success_bits, unpack_success_bits
from gcp_jax.stats.intervals import difference, wilson


def evaluation(stage, seed, successes, episodes=10):
    return {"stage": stage, "seed": seed, "eval/successes": successes, "eval/episodes": episodes}


def test_before_after_takes_the_base_policy_and_the_last_finetuned_one():
    rows = [evaluation("pretrain", 0, 9), evaluation("base", 0, 4), evaluation("base", 1, 6)]
    rows += [evaluation("finetune", 1, 7), evaluation("finetune", 1, 8)]
    zero, one, pooled = before_after(rows)
    assert (zero.label, zero.before, zero.after, zero.change) == (
        "seed 0",
        wilson(4, 10),
        None,
        None,
    )
    assert (one.before, one.after) == (wilson(6, 10), wilson(8, 10))
    assert one.change == difference(wilson(8, 10), wilson(6, 10))
    assert (pooled.label, pooled.before.estimate, pooled.after.estimate) == ("pooled", 0.5, 0.8)


def test_before_after_has_a_row_for_each_task_over_all_seeds():
    def row(stage, seed, **tasks):
        counts = {
            f"eval/{what}/{name}": n
            for name, pair in tasks.items()
            for what, n in zip(("successes", "episodes"), pair, strict=True)
        }
        return {**evaluation(stage, seed, 5), **counts}

    rows = [
        row("base", 0, push=(1, 4)),
        row("base", 1, push=(1, 6)),
        row("finetune", 0, push=(4, 4), door=(2, 8)),
    ]
    _, _, door, push, pooled = before_after(rows)
    assert (door.label, push.label, pooled.label) == ("door", "push", "pooled")
    assert door.before is None and door.after == wilson(2, 8)
    assert push.before.estimate == 0.2 and push.after == wilson(4, 4)


def test_before_after_of_a_run_that_only_pretrained_and_of_one_just_started():
    assert before_after([evaluation("pretrain", 0, 2), evaluation("pretrain", 0, 3)])[
        0
    ].before == wilson(3, 10)
    assert before_after([]) == []


def test_before_after_of_a_task_scored_by_its_return():
    def row(stage, mean):
        return {
            "stage": stage, "seed": 0, "env_steps": 0,
            "eval/return": mean, "eval/return_std": 40.0, "eval/episodes": 16,
        }  # fmt: skip

    seed, pooled = before_after([row("base", 900.0), row("finetune", 2310.0)])
    assert seed.cells() == (
        "seed 0",
        "900 [879, 921]",
        "2,310 [2,289, 2,331]",
        "+1,410 [+1,380, +1,440]",
    )
    assert pooled.label == "pooled" and pooled.cells()[1:] == seed.cells()[1:]
    assert (
        before_after([row("base", 9.0) | {"eval/return_std": 4.0}])[0].cells()[1]
        == "9.0 [6.9, 11.1]"
    )


def test_texts_for_tables():
    row = before_after([evaluation("base", 0, 50, 100), evaluation("finetune", 0, 90, 100)])[0]
    assert row.cells() == (
        "seed 0",
        "50.0 % [40.4, 59.6]",
        "90.0 % [82.6, 94.5]",
        "+40.0 [+27.8, +50.6]",
    )
    assert row._replace(after=None).cells()[2:] == ("–", "–")


def test_outcomes_come_back_from_a_row():
    success = np.random.default_rng(0).random(37) < 0.4
    row = {
        "eval/success_bits": pack_success_bits(success),
        "eval/episodes": 37,
        "eval/successes": int(success.sum()),
    }
    np.testing.assert_array_equal(unpack_success_bits(row), success)
    assert unpack_success_bits({"eval/episodes": 37, "eval/successes": 3}) is None
    with pytest.raises(ValueError, match="eval/successes is 99"):
        unpack_success_bits({**row, "eval/successes": 99})
