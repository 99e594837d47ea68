"""What follows from a configuration by counting: sizes, cadences, and the decisions of a stage."""

import signal

import pytest
from helpers.run_configs import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from gcp_jax import envs
from gcp_jax.config import ConfigError, clone_config
from gcp_jax.experiments import assemble
from gcp_jax.run.errors import Interrupted, Paused
from gcp_jax.run.size_notes import rounded_fields, size_notes
from gcp_jax.run.sizes import Cadence, run_sizes, stage_cadences

REACH = envs.make("reach").specs
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


def test_a_warm_up_that_rounds_to_the_whole_run_is_refused():
    """Both are 2 segments of 2,048 env steps."""
    config = small_config(
        **{
            "finetune.env_steps": 3000,
            "finetune.learning_starts": 2500,
            "finetune.envs": 64,
            "finetune.unroll_chunks": 8,
        }
    )
    message = (
        "learning_starts is 2500, 4096 in whole segments of 2048 env steps, and .*env_steps is "
        "3000: nothing would be learned; raise finetune.env_steps above 4096"
    )
    with pytest.raises(ConfigError, match=message):
        sizes_of(config)


def test_a_clone_alone_has_no_warm_up_to_refuse():
    config = small_config(**{"policy.chunk": 24, "env.horizon": 4000})
    assert sizes_of(clone_config(config)).segments > 0


counts = st.integers(1, 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_run_learns_or_is_refused_and_says_what_it_rounds(data):
    """Any counts up to 2³¹ and any utd: one line, or sizes that 32 bits hold."""
    small = st.integers(1, 64)
    fields = {
        "finetune.env_steps": data.draw(counts),
        "finetune.learning_starts": data.draw(st.integers(0, 2**31 - 1)),
        "finetune.capacity": data.draw(st.integers(16, 2**31 - 1)),
        "finetune.utd": data.draw(st.floats(1e-6, 10.0) | st.floats(1e-30, 1e30)),
        "finetune.envs": data.draw(small | counts),
        "finetune.unroll_chunks": data.draw(small | counts),
        "pretrain.updates": data.draw(counts),
        "pretrain.evaluate_every": data.draw(counts),
        "evaluation.every": data.draw(counts),
        "checkpoint.every": data.draw(counts),
    }
    config = small_config(**fields)
    try:
        sizes = run_sizes(config, REACH)
    except ConfigError:
        return
    assert max(sizes.env_steps, sizes.updates * sizes.segments) < 2**31
    cadences = stage_cadences(config, sizes)
    cloning, finetuning = (each.counters(each.segments) for each in cadences)
    assert finetuning["updates"] > 0
    assert 0 < cloning["updates"] <= config.pretrain.updates
    rounded = {name: used for name, _, used in rounded_fields(config, sizes)}
    for name, done in (
        ("pretrain.updates", cloning["updates"]),
        ("finetune.env_steps", finetuning["env_steps"]),
    ):
        assert done == rounded.get(name, fields[name])


@pytest.mark.parametrize(
    ("algorithm", "fields", "first"),
    [
        ("qc", {"algorithm.critic_warmup_updates": 64}, 64),
        ("ogpo", {"algorithm.critic_warmup_updates": 64}, 64),
        ("residual", {"algorithm.mode": "sac", "algorithm.critic_warmup_updates": 64}, 64),
        (
            "residual",
            {
                "algorithm.mode": "td3",
                "algorithm.critic_warmup_updates": 63,
                "algorithm.policy_delay": 8,
            },
            64,
        ),
        ("dppo", {"algorithm.value_warmup_segments": 8, "algorithm.epochs": 1}, 64),
    ],
)
def test_a_policy_that_never_changes_is_noted(algorithm, fields, first):
    """With 64 updates and with 65, or with eight segments and with nine."""
    config = small_config(
        algorithm,
        **{
            **fields,
            "finetune.unroll_chunks": 8,
            "finetune.utd": 8 / 128,
            "finetune.env_steps": 8 * 128,
            "finetune.learning_starts": 0,
        },
    )
    sizes = sizes_of(config)
    assert sizes.segments * sizes.updates == 64
    [note] = [note for note in size_notes(config, sizes) if "not finetuned" in note]
    assert f"its first update would be update {first}, after the 64 updates" in note
    longer = sizes._replace(segments=9)
    assert not [note for note in size_notes(config, longer) if "not finetuned" in note]


@pytest.mark.parametrize(
    ("updates", "every", "cloned"), [(10, 50, 10), (120, 50, 100), (100, 50, 100), (1, 1, 1)]
)
def test_cloning_takes_at_most_its_updates(updates, every, cloned):
    config = small_config(**{"pretrain.updates": updates, "pretrain.evaluate_every": every})
    cadence = stage_cadences(config, sizes_of(config)).pretrain
    assert cadence.counters(cadence.segments)["updates"] == cloned


def test_what_is_rounded_is_named_with_the_value_that_is_used():
    config = small_config(
        **{"finetune.env_steps": 5000, "finetune.learning_starts": 0, "finetune.utd": 0.125}
    )
    [note] = size_notes(config, sizes_of(config))
    assert note == "in whole segments of 32 env steps: finetune.env_steps 5000 becomes 5024"
    changes = {"pretrain.updates": 120, "pretrain.evaluate_every": 50}
    config = small_config(**changes)
    assert (
        "in whole multiples of pretrain.evaluate_every=50: pretrain.updates 120 becomes 100"
        in size_notes(config, sizes_of(config))
    )


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
