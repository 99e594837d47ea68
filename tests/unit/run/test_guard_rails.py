"""Watching members: selection and its ties, decay, setting back; without a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.config import Member
from gcp_jax.run import guard_rails
from gcp_jax.run.guard_rails import GuardRails, GuardSetup
from gcp_jax.stats import guard_rules
from gcp_jax.stats.eval_rows import pack_success_bits

MEMBERS = [Member(0, {}), Member(1, {})]
EPISODES = 64


def row(seed, successes, env_steps=0, stage="finetune"):
    outcomes = np.arange(EPISODES) < successes
    return {
        "stage": stage,
        "seed": seed,
        "env_steps": env_steps,
        "eval/success": successes / EPISODES,
        "eval/successes": successes,
        "eval/success_bits": pack_success_bits(outcomes),
        "eval/episodes": EPISODES,
        "eval/return": float(successes),
        "eval/return_std": 1.0,
        "eval/length": 10.0,
    }


def setup(on_decay="warn"):
    base_rows = {seed: row(seed, 32, stage="base") for seed in (0, 1)}
    return GuardSetup(members=MEMBERS, base_rows=base_rows, gammas=(0.9, 0.9), on_decay=on_decay)


def evaluate(guard, env_steps, successes, *, is_last=False):
    """An evaluation whose policies and states hold its environment steps and the seed."""
    rows = [row(seed, count, env_steps) for seed, count in enumerate(successes)]
    return guard.after_evaluation(
        rows,
        {"w": np.array([[env_steps, seed] for seed in (0, 1)])},
        lambda: state_at(env_steps),
        is_last=is_last,
    )


def state_at(env_steps):
    """A state on the host: random keys are integers."""
    return {
        "w": np.array([[env_steps, seed] for seed in (0, 1)], np.float32),
        "key": np.array([[env_steps, seed] for seed in (0, 1)], np.uint32),
    }


def test_the_best_policy_of_each_member_is_the_earliest_of_the_highest_scores():
    guard = GuardRails(setup())
    assert guard.evaluations == 0 and guard.chosen(0).is_base
    evaluate(guard, 10, (32, 33))
    assert guard.chosen(0).is_base  # a tie with the base policy
    evaluate(guard, 20, (40, 33))
    evaluate(guard, 30, (40, 20))
    evaluate(guard, 40, (39, 64))
    assert [guard.chosen(index).row["env_steps"] for index in (0, 1)] == [20, 40]
    assert [guard.deployed(index)["w"].tolist() for index in (0, 1)] == [[20, 0], [40, 1]]
    assert guard.chosen(1).evaluations == 4 and not guard.chosen(1).is_base


def test_without_a_better_policy_nothing_is_kept():
    guard = GuardRails(setup())
    guard.begin({})
    evaluate(guard, 10, (32, 20))
    assert guard.arrays() == {} and guard.chosen(1).is_base


def test_kept_policies_are_copies():
    guard = GuardRails(setup())
    rows = [row(seed, 50, 10) for seed in (0, 1)]
    deployed = {"w": np.zeros((2, 3))}
    guard.after_evaluation(rows, deployed, state_at, is_last=False)
    deployed["w"][:] = 7.0
    rows[0]["env_steps"] = 99
    assert guard.deployed(0)["w"].tolist() == [0.0, 0.0, 0.0]
    assert guard.chosen(0).row["env_steps"] == 10


@pytest.mark.parametrize("on_decay", ["warn", "restore"])
def test_what_is_known_survives_a_checkpoint(on_decay):
    """Its plain values as JSON: a guard that continues equals one that never stopped."""
    once = GuardRails(setup(on_decay))
    again = GuardRails(setup(on_decay))
    for guard in (once, again):
        if on_decay == "restore":
            guard._arrays["state"] = state_at(0)
    for number, successes in enumerate(((40, 5), (41, 6), (3, 50), (45, 2)), start=1):
        segment = {guard_rules.GAP: 5.0 * number}
        assert evaluate(once, number, successes) == evaluate(again, number, successes)
        for guard in (once, again):
            guard.after_segment(0, segment)
        saved = json.loads(json.dumps(again.host_state()))
        again = GuardRails(setup(on_decay), saved, again.arrays())
    assert json.dumps(once.host_state()) == json.dumps(again.host_state())
    jax.tree.map(np.testing.assert_array_equal, once.arrays(), again.arrays())


def test_decay_is_said_once_and_so_is_recovery(capsys):
    guard = GuardRails(setup())
    for number, successes in enumerate(((32, 32), (4, 32), (3, 32), (31, 32), (33, 32)), start=1):
        assert evaluate(guard, 1000 * number, successes) == []
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "seed_0 is below its base policy at 2,000 env steps (6.2% success, the base policy 50.0% "
        "success; finetune.on_decay=warn); policy/best keeps the better one"
    )
    assert second == (
        "seed_0 is no longer below its base policy at 5,000 env steps (51.6% success, the base "
        "policy 50.0% success)"
    )


def test_inflating_critics_are_said_once(capsys):
    """Returns are of size 32: the gap exceeds 16 at the third evaluation."""
    guard = GuardRails(setup())
    for number in range(1, 6):
        guard.after_segment(1, {guard_rules.GAP: 10.0 * number})
        evaluate(guard, 1000 * number, (32, 32))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("the critics of seed_1 overestimate more and more at 3,000 env steps")
    assert "10, 20, 30" in line and "of size 32" in line


def test_a_run_stops_once_all_members_that_are_left_are_below():
    guard = GuardRails(setup("stop"))
    evaluate(guard, 10, (4, 32))
    assert not guard.stops([])
    assert guard.stops(["seed_1"])
    evaluate(guard, 20, (5, 6))
    assert guard.stops([])
    assert not guard.stops(["seed_0", "seed_1"])  # the run ends for another reason
    same = GuardRails(setup("warn"), guard.host_state())
    assert not same.stops([])


def on_device(state):
    return {
        "w": jnp.asarray(state["w"]),
        "key": jax.random.wrap_key_data(jnp.asarray(state["key"])),
    }


def test_a_member_is_set_back_to_its_best_evaluation_and_the_others_stay(capsys):
    guard = GuardRails(setup("restore"))
    guard.begin(on_device(state_at(0)))
    assert evaluate(guard, 10, (40, 40)) == []
    assert evaluate(guard, 20, (3, 39)) == [0]
    said = capsys.readouterr().err
    assert "set back to its state of 10 env steps (finetune.on_decay=restore)" in said
    state = on_device(state_at(20))
    restored = guard.restored_state(state, [0])
    host = guard_rails.fetch_state(restored)
    expected = state_at(20)
    for name, x in expected.items():
        x[0] = state_at(10)[name][0]
        np.testing.assert_array_equal(host[name], x)
    assert restored["w"].sharding == state["w"].sharding
    assert restored["key"].dtype == state["key"].dtype


def test_without_a_better_evaluation_a_member_is_set_back_to_the_beginning():
    guard = GuardRails(setup("restore"))
    guard.begin(on_device(state_at(0)))
    assert evaluate(guard, 10, (3, 40)) == [0]
    host = guard_rails.fetch_state(guard.restored_state(on_device(state_at(10)), [0]))
    assert host["w"].tolist() == [[0.0, 0.0], [10.0, 1.0]]


def test_nothing_is_set_back_after_the_last_evaluation_or_by_a_warning():
    guard = GuardRails(setup("restore"))
    guard.begin(on_device(state_at(0)))
    assert evaluate(guard, 10, (3, 3), is_last=True) == []
    assert evaluate(GuardRails(setup("warn")), 10, (3, 3)) == []
