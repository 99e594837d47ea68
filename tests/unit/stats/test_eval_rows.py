"""Scores of evaluation rows: before and after, per seed and task, and the stored success bits."""

import numpy as np
import pytest

from gcp_jax.stats.eval_rows import (
    CLONE,
    before_after,
    pack_success_bits,
    pooled_score,
    score_curve,
    unpack_success_bits,
)
from gcp_jax.stats.intervals import (
    Success,
    difference,
    mean_return,
    pooled_success,
    wilson,
)


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


def test_the_seeds_of_one_clone_are_episodes_of_one_policy():
    """39.8 %: 102 of 256 episodes of one clone, whatever the seeds say: Wilson [34, 46]."""
    before = [evaluation("base", 0, 70, 128), evaluation("base", 1, 32, 128)]
    after = [evaluation("finetune", 0, 120, 128), evaluation("finetune", 1, 100, 128)]
    pooled = before_after([*before, *after])[-1]
    assert pooled.before == wilson(102, 256)
    assert pooled.before.percent() == "39.8 % [34.0, 45.9]"
    assert pooled.after == pooled_success([Success(120, 128), Success(100, 128)])
    assert pooled.after.high - pooled.after.low > 0.3  # two policies that differ
    assert pooled.change == difference(pooled.after, wilson(102, 256))


def test_cloning_is_evaluated_on_the_start_states_of_all_seeds():
    rows = [evaluation("pretrain", 0, 70, 128), evaluation("pretrain", 1, 32, 128)]
    assert before_after(rows)[-1].before == wilson(102, 256)


def test_several_clones_differ_and_their_interval_covers_others():
    rows = [
        evaluation("base", seed, successes, 64) | {CLONE: clone}
        for seed, successes, clone in [(0, 20, "a"), (1, 24, "a"), (2, 60, "b"), (3, 58, "b")]
    ]
    assert pooled_score(rows) == pooled_success([Success(44, 128), Success(118, 128)])
    assert pooled_score(rows[:2]) == wilson(44, 128)


def test_one_policy_of_a_task_of_several_is_pooled_as_episodes():
    rows = [
        evaluation("base", seed, 5) | {"eval/successes/push": k, "eval/episodes/push": 20}
        for seed, k in ((0, 1), (1, 19))
    ]
    push, pooled = before_after(rows)[-2:]
    assert push.before == wilson(20, 40)
    assert pooled.label == "pooled"


def test_returns_of_one_clone_are_episodes_of_one_policy():
    rng = np.random.default_rng(0)
    episodes = rng.normal([[70.0], [130.0]], 20.0, size=(2, 16))

    def rows(stage):
        return [
            {
                "stage": stage, "seed": seed, "env_steps": 0, "eval/episodes": 16,
                "eval/return": each.mean(), "eval/return_std": each.std(ddof=1),
            }
            for seed, each in enumerate(episodes)
        ]  # fmt: skip

    flat = episodes.ravel()
    assert pooled_score(rows("base")) == pytest.approx(
        mean_return([flat.mean()], [flat.std(ddof=1)], [32])
    )
    apart = pooled_score(rows("finetune"))
    assert apart.high - apart.low > 10 * (pooled_score(rows("base")).high - 100.0)


def test_the_curve_starts_at_the_clone_and_has_the_steps_at_which_every_seed_was_evaluated():
    def at(stage, seed, steps, successes):
        return evaluation(stage, seed, successes) | {"env_steps": steps}

    rows = [at("pretrain", 0, 0, 9), at("pretrain", 1, 0, 9)]
    rows += [at("base", 0, 0, 1), at("base", 1, 0, 9)]
    rows += [at("finetune", 0, 64, 7), at("finetune", 1, 64, 9), at("finetune", 0, 128, 10)]
    base, only = score_curve(rows)
    assert base == (0, wilson(10, 20))
    assert only == (64, pooled_success([Success(7, 10), Success(9, 10)]))
    assert score_curve([]) == []
