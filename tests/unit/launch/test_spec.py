"""Declarations of a sweep that contradict themselves are refused in one line."""

from __future__ import annotations

import pytest

from gcp_jax.config import ConfigError
from gcp_jax.launch import Halving, Search, Sweep, grid, log_uniform, uniform

REACH = "experiments/configs/reach.py"
RATES = grid("algorithm.critic_lr", (1e-4, 1e-3))
SPACE = {"algorithm.critic_lr": log_uniform(1e-4, 1e-2)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sweep(REACH, ([],)), "an axis of the sweep is empty"),
        (lambda: Sweep(REACH, (RATES, RATES)), "algorithm.critic_lr is set twice"),
        (lambda: Sweep(REACH, (RATES,), pack=("finetune.utd",)), "pack names 'finetune.utd'"),
        (lambda: Sweep(REACH, seeds=0), "seeds is 0"),
        (lambda: Sweep(REACH, RATES), "the sweep's axes are points; give a tuple of axes"),
        (lambda: Sweep(REACH, ({},)), "the sweep's axes are points"),
        (lambda: Sweep(REACH, (3,)), "an axis of the sweep is 3; a list of points"),
        (lambda: Sweep(REACH, ([3],)), r"an axis of the sweep is \[3\]; a list of points"),
        (lambda: Sweep(REACH, ([{"a": 1}, {"b": 1}],)), "different fields .a and b"),
        (lambda: Sweep(REACH, ([{"a": 1}, {}],)), "different fields"),
        (lambda: Sweep(REACH, None), "the sweep's axes is None; a tuple of axes"),
        (lambda: Sweep(None), "the sweep's config is None; a configuration file"),
        (lambda: Sweep(REACH, fields=()), r"the sweep's fields is \(\); {'FIELD': value}"),
        (lambda: Sweep(REACH, seeds="3"), "the sweep's seeds is '3'; a whole number"),
        (lambda: Sweep(REACH, (RATES,), pack="algorithm.critic_lr"), "pack is 'algorithm"),
        (
            lambda: Sweep(REACH, fields={"seeds": 3}),
            r"the sweep's seeds cannot be used here; use Sweep\(seeds=…\)",
        ),
        (lambda: Sweep(REACH, (grid("run_dir", ("a", "b")),)), "run_dir cannot be used here"),
        (
            lambda: Sweep(REACH, fields={"population.actor_lr": (1e-4,)}),
            "population.actor_lr cannot be used here; name the varied fields in",
        ),
        (
            lambda: Sweep(REACH, (grid("seed", (0, 1)),), spread_seeds=True),
            "spread_seeds gives each run its own seed",
        ),
        (lambda: Search({}, trials=3), "a search over no field"),
        (lambda: Search(SPACE, trials=0), "a search of 0 trials"),
        (lambda: Search(SPACE, trials=3, sampler="best"), "allowed: tpe, gp, random"),
        (lambda: Halving((10, 10)), "increasing numbers"),
        (lambda: Halving(()), "increasing numbers"),
        (lambda: Halving((10,), keep=1), "it must be 2 or more"),
        (
            lambda: Sweep(REACH, search=Search(SPACE, 3), halving=Halving((1,))),
            "cannot be combined",
        ),
        (
            lambda: Sweep(
                REACH,
                (RATES,),
                pack=("algorithm.critic_lr",),
                search=Search({"a": uniform(0, 1)}, 3),
            ),
            "leave pack out",
        ),
        (
            lambda: Sweep(REACH, (RATES,), search=Search(SPACE, 3)),
            "algorithm.critic_lr is set twice",
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
