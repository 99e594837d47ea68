"""What follows from a configuration by counting: sizes, cadences, and the decisions of a stage."""

import signal

import pytest
from helpers.run_configs import small_config

from gcp_jax.experiments import assemble
from gcp_jax.run.errors import Interrupted, Paused
from gcp_jax.run.sizes import Cadence, run_sizes

CADENCE = Cadence(
    name="finetune",
    segments=8,
    env_steps=128,
    updates=4,
    warmup_segments=2,
    evaluate_every=2,
    checkpoint_every=3,
)


def sizes_of(config):
    return run_sizes(config, assemble.make_task(config, film=False).env.specs)


def decide(clock, *, signum=0, pause_at=0, goal_reached=False):
    return CADENCE.decide(clock, signum=signum, pause_at=pause_at, goal_reached=goal_reached)


def test_an_on_policy_method_passes_over_its_segment_and_does_not_warm_up():
    config = small_config(
        "dppo", **{"algorithm.epochs": 3, "algorithm.minibatches": 2, "finetune.unroll_chunks": 4}
    )
    sizes = sizes_of(config)
    assert (sizes.updates, sizes.warmup_segments) == (6, 0)
    assert sizes_of(small_config()).warmup_segments > 0


def test_counters_follow_from_the_clock():
    assert CADENCE.counters(2) == {"env_steps": 256, "updates": 0}
    assert CADENCE.counters(8) == {"env_steps": 1024, "updates": 24}
    assert CADENCE.progress(3) == 384 and CADENCE.unit == "env steps"
    pretrain = CADENCE._replace(env_steps=0, warmup_segments=0)
    assert pretrain.progress(3) == 12 and pretrain.unit == "updates"


@pytest.mark.parametrize(
    ("pause_at", "pauses"),
    [(0, []), (1, [2]), (256, [2]), (257, [4]), (512, [4]), (1024, [])],
)
def test_a_run_pauses_at_the_first_evaluation_from_there_on(pause_at, pauses):
    """Not at the last one, where it ends."""
    assert [clock for clock in range(1, 9) if CADENCE.pauses(clock, pause_at)] == pauses
    assert not CADENCE._replace(env_steps=0).pauses(2, pause_at)


def test_a_stage_saves_on_schedule_and_at_its_end():
    assert [clock for clock in range(1, 9) if decide(clock).save] == [3, 6, 8]
    assert decide(4, goal_reached=True).save
    assert not any(decide(clock).stop for clock in range(1, 9))


def test_a_stage_saves_before_it_stops():
    paused = decide(4, pause_at=512)
    assert paused.save and isinstance(paused.stop, Paused)
    assert str(paused.stop) == "paused at 512 env steps."
    stopped = decide(5, signum=signal.SIGTERM)
    assert stopped.save and isinstance(stopped.stop, Interrupted)
    assert stopped.stop.code == 128 + signal.SIGTERM
    assert str(stopped.stop) == (
        "stopped by SIGTERM; saved at 640 env steps of finetune. "
        "The same command continues from there."
    )


def test_a_pause_comes_before_a_signal():
    assert isinstance(decide(4, signum=signal.SIGTERM, pause_at=512).stop, Paused)
