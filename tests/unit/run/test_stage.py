"""Numbers of a stage: means over episodes, and the score that ends cloning."""

import math
import signal

import pytest

from gcp_jax.learner import loop
from gcp_jax.run.episode_cohorts import EpisodeCohorts
from gcp_jax.run.errors import Interrupted, RunError
from gcp_jax.run.evaluator import format_mean_score, mean_score, note_diverged
from gcp_jax.run.signals import StopRequest
from gcp_jax.run.sizes import Cadence
from gcp_jax.run.stage import DataId, Stage
from gcp_jax.run.stage_loop import episode_columns, stop_before_segment
from gcp_jax.types import LearnerState, Train

CADENCE = Cadence("pretrain", 3, 0, 10, 0, 1, 1)


def stage(stop_score):
    return Stage(
        cadence=CADENCE,
        learner=None,
        members=[],
        values={},
        pretrained=None,
        eval_members=[],
        eval_policy=None,
        export=None,
        algorithm_of=None,
        stop_score=stop_score,
    )


def eval_row(success):
    return {"eval/success": success, "eval/successes": 1}


def test_means_are_over_the_episodes_that_started_in_the_same_segment():
    """Of two members the second; K = 1: what started in the first segment has ended in the next."""
    cohorts = EpisodeCohorts()
    first = {
        "episode/episodes": [[9.0, 0.0], [1.0, 0.0]],
        "episode/successes": [[9.0, 0.0], [1.0, 0.0]],
        "episode/returns": [[9.0, 0.0], [-2.0, 0.0]],
        "episode/lengths": [[9.0, 0.0], [4.0, 0.0]],
        "episode/diverged": [[9.0, 0.0], [0.0, 0.0]],
        "train/loss": [7.0, 7.0],
    }
    cohorts.add(first)
    ended = {"episode/ended": 1.0, "episode/diverged": 0.0}
    assert episode_columns(cohorts, 1, first) == ended  # no rate of successes alone
    second = {
        "episode/episodes": [[0.0, 0.0], [2.0, 3.0]],
        "episode/successes": [[0.0, 0.0], [2.0, 0.0]],
        "episode/returns": [[0.0, 0.0], [50.0, -6.0]],
        "episode/lengths": [[0.0, 0.0], [8.0, 36.0]],
        "episode/diverged": [[0.0, 0.0], [0.0, 2.0]],
    }
    cohorts.add(second)
    assert episode_columns(cohorts, 1, second) == {
        "episode/success": 0.25,
        "episode/return": -2.0,
        "episode/length": 10.0,
        "episode/episodes": 4.0,
        "episode/ended": 5.0,
        "episode/diverged": 2.0,
    }


def test_without_an_environment_there_are_no_episodes():
    assert episode_columns(EpisodeCohorts(), 0, {"train/loss": [1.0]}) == {}


def test_a_stage_ends_after_its_segments_or_at_its_goal():
    rows = [eval_row(0.4), eval_row(0.6)]
    assert not stage(0.45).goal_reached([])
    assert stage(0.45).goal_reached(rows) and stage(0.45).is_over(1, rows)
    assert not stage(math.inf).is_over(2, rows)
    assert stage(math.inf).is_over(3, rows)


def test_the_mean_score_is_shown_by_its_name():
    rows = [eval_row(0.25), eval_row(0.75)]
    assert mean_score(rows) == 0.5 and format_mean_score(rows) == "50.0% success"
    assert format_mean_score([{"eval/return": 1234.56}]) == "return 1,234.6"


def test_a_stage_resumes_with_the_demonstrations_that_it_learned_from(capsys):
    """Recorded ones must be the same; scripted ones may be rounded differently, which is said."""
    DataId("a", "demos/mine").check_resumed("pretrain", "a")
    DataId().check_resumed("finetune", "")
    assert capsys.readouterr().err == ""
    with pytest.raises(RunError, match="demonstrations.path=demos/mine does not hold the") as error:
        DataId("a", "demos/mine").check_resumed("pretrain", "b")
    assert "\n" not in str(error.value)
    DataId("a").check_resumed("pretrain", "b")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "scripted demonstrations of pretrain differ" in said


def test_a_checkpoint_holds_everything_but_the_data():
    learner = LearnerState(*range(len(LearnerState._fields)))
    kept = loop.without_data(Train(env_state=7, learner=learner))
    assert kept == Train(env_state=7, learner=learner._replace(data=None))


def test_a_signal_before_the_first_segment_stops_the_stage_there():
    """It may come while the base policy is evaluated, minutes before the segment is compiled."""
    request = StopRequest()
    stop_before_segment(request, CADENCE, clock=1)
    request.signum = signal.SIGINT
    message = "stopped by SIGINT; saved at 10 updates of pretrain. The same command continues"
    with pytest.raises(Interrupted, match=message) as error:
        stop_before_segment(request, CADENCE, clock=1)
    assert error.value.code == 128 + signal.SIGINT


def test_diverged_episodes_of_the_last_evaluation_are_noted(capsys):
    rows = [{"eval/diverged": count, "eval/episodes": 16} for count in (0, 3)]
    note_diverged(rows[:1], "finetune")
    assert capsys.readouterr().err == ""
    note_diverged(rows, "finetune")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: 3 of the 32 episodes of the last evaluation of finetune diverged")
