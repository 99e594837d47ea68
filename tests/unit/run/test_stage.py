"""Numbers of a stage: means over episodes, and the score that ends cloning."""

import math

import pytest

from gcp_jax.learner import loop
from gcp_jax.run.errors import RunError
from gcp_jax.run.evaluator import format_mean_score, mean_score
from gcp_jax.run.sizes import Cadence
from gcp_jax.run.stage import DataId, Stage, episode_means
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


def test_means_are_over_the_episodes_that_ended():
    sums = {
        "episode/episodes": 4.0,
        "episode/successes": 1.0,
        "episode/returns": -8.0,
        "episode/lengths": 40.0,
        "episode/diverged": 2.0,
        "train/loss": 7.0,
    }
    assert episode_means(sums) == {
        "episode/success": 0.25,
        "episode/return": -2.0,
        "episode/length": 10.0,
        "episode/episodes": 4.0,
        "episode/diverged": 2.0,
    }


def test_without_an_episode_there_are_no_means():
    assert episode_means({"episode/episodes": 0.0}) == {}
    assert episode_means({}) == {}


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
