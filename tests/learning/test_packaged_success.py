"""The policies that come with gcp-jax succeed as often as their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from gcp_jax.experiments import play
from gcp_jax.run import packaged_policies
from gcp_jax.stats.intervals import wilson

pytestmark = pytest.mark.slow

EPISODES = 64
SEED = 7  # of start states other than the card's
CONFIDENCE = 0.999  # of the card's interval that is allowed here
RAREST = 1e-3  # probability of a number of successes that is too rare


@pytest.mark.parametrize("name", packaged_policies.names())
def test_it_succeeds_as_often_as_its_card_says(name):
    """Not too many successes for the highest rate of its interval, nor too few for the lowest."""
    card = packaged_policies.read_card(name)
    score = card["scores"][card["method"]]
    recorded = round(score["success"] * score["episodes"])
    allowed = wilson(recorded, score["episodes"], CONFIDENCE)
    played = play.play(Path(name), episodes=EPISODES, seed=SEED)
    successes = int(played.outcome.success.sum())
    assert stats.binom.sf(successes - 1, EPISODES, allowed.high) > RAREST, "more often"
    assert stats.binom.cdf(successes, EPISODES, allowed.low) > RAREST, "less often"
