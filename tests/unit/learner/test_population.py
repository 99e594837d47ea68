"""A population: members of one program with values of their own, each the run that it would be
alone.
"""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import envs
from gcp_jax.algorithms import ogpo
from gcp_jax.config import AlgorithmChoice, ConfigError, Member
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.envs.wrappers import training
from gcp_jax.experiments import run_config
from gcp_jax.launch.cli import inspect, main
from gcp_jax.learner import batch_sources, loop, population
from gcp_jax.learner.loop import CollectConfig
from gcp_jax.types import Specs

SPECS = Specs(obs_dim=4, action_dim=2, chunk=4)
COLLECTION = CollectConfig(
    env=training(envs.make("reach", horizon=10, tolerance=1.55)),
    envs=8,
    unroll_chunks=3,
    reset_pool=4,
)
CONFIG = ogpo.Config(
    chains=4,
    actor_states=8,
    critics=2,
    critic_hidden=(16,),
    best_of=2,
    actor_tau=0.1,
    gamma=0.99,
    critic_lr=3e-4,
    critic_tau=0.02,
    critic_warmup_updates=0,
)
POLICY = policy_lib.make_policy(PolicyConfig(chunk=4, hidden=(16,), steps=2), SPECS)


def configured(**fields):
    config = run_config.defaults(env="reach")
    run_config.override(
        config,
        {name.replace("__", "."): value for name, value in fields.items() if name != "population"},
    )
    config.population = fields.get("population", {})
    return run_config.frozen_config(config)


def method(config):
    source = batch_sources.replay(capacity=6, batch_size=16, updates=2, **ogpo.replay_needs(config))
    return ogpo.make(config, POLICY, source)


def trained(built, seeds, values):
    """State and metrics after two segments."""
    pretrained = {
        "net": jax.jit(POLICY.init)(jax.random.key(1)),
        "normalizer": Normalizer(jnp.zeros(4), jnp.ones(4)),
    }
    train = built.init(
        jnp.asarray(seeds), pretrained, {name: np.float32(v) for name, v in values.items()}
    )
    train, _ = built.segment(train)
    train, metrics = built.segment(train)
    return jax.device_get((train.learner.state, metrics))


@pytest.fixture(scope="module")
def members(devices):
    """Seeds 2 and 5 with each of two settings, over two devices; and how often the method was
    made.
    """
    run = configured(population={"actor_lr": (1e-3, 1e-2), "clip": (0.01, 0.3)})
    run = dataclasses.replace(
        run, algorithm=AlgorithmChoice(name="ogpo", module="", settings=CONFIG)
    )
    made = []

    def vary(values):
        made.append(values)
        return method(population.config_of_member(run, values)), None

    built = loop.build_learner(
        method(CONFIG), SPECS, mesh=devices(seed=2), seeds=4, collection=COLLECTION, member_fn=vary
    )
    values = {"actor_lr": [1e-3, 1e-3, 1e-2, 1e-2], "clip": [0.01, 0.01, 0.3, 0.3]}
    return built, trained(built, [2, 5, 2, 5], values), made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "seed", "actor_lr", "clip"), [(1, 5, 1e-3, 0.01), (2, 2, 1e-2, 0.3)]
)
def test_a_member_is_the_run_it_would_be_alone(members, devices, index, seed, actor_lr, clip):
    alone = method(dataclasses.replace(CONFIG, actor_lr=actor_lr, clip=clip))
    built = loop.build_learner(alone, SPECS, mesh=devices(), seeds=1, collection=COLLECTION)
    expected = trained(built, [seed], {})
    actual = members[1]
    near = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[index], b[0], **near), actual, expected)


@pytest.mark.slow
def test_a_member_that_leaves_the_finite_numbers_does_not_touch_the_others(members):
    built, (state, _), _ = members
    values = {"actor_lr": [1e-3, 1e-3, 1e30, 1e-2], "clip": [0.01, 0.01, 0.3, 0.3]}
    found, numbers = trained(built, [2, 5, 2, 5], values)
    assert (
        numbers["train/nonfinite_updates"][2] > 0
        and not np.delete(numbers["train/nonfinite_updates"], 2).any()
    )
    others = np.array([0, 1, 3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), found, state)
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(found) if np.issubdtype(x.dtype, np.floating)
    )


def test_members_differ_by_their_values_and_by_their_seeds(members):
    state, _ = members[1]
    kernels = np.concatenate(
        [np.asarray(x).reshape(4, -1) for x in jax.tree.leaves(state.actor.params)], axis=1
    )
    assert len(np.unique(kernels, axis=0)) == 4


def test_other_values_need_no_other_program(members):
    built, _, made = members
    before = len(made)
    trained(
        built, [0, 1, 2, 3], {"actor_lr": [1e-5, 1e-4, 1e-3, 3e-3], "clip": [0.1, 0.2, 0.3, 0.4]}
    )
    assert len(made) == before


def test_the_first_values_of_every_field_go_together_each_with_all_seeds():
    run = configured(
        seed=3, seeds=2, population={"actor_lr": (1e-4, 3e-4), "critic_warmup_updates": (0, 64)}
    )
    points = (
        {"actor_lr": 1e-4, "critic_warmup_updates": 0},
        {"actor_lr": 3e-4, "critic_warmup_updates": 64},
    )
    assert run.members == [Member(seed, point) for point in points for seed in (3, 4)]
    assert run.members[3].label == "actor_lr=0.0003,critic_warmup_updates=64"
    values = population.member_values(run)
    np.testing.assert_array_equal(values["actor_lr"], np.float32([1e-4, 1e-4, 3e-4, 3e-4]))
    assert values["critic_warmup_updates"].dtype == np.int32
    alone = run.of(points[1])
    assert alone.algorithm.settings.actor_lr == 3e-4 and alone.members == [
        Member(3, {}),
        Member(4, {}),
    ]
    assert configured().members == [Member(0, {})]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"actor_rl": (1e-4,)}, "ogpo has no numeric field 'actor_rl'; did you mean 'actor_lr'?"),
        ({"extraction": ("ppo", "awr")}, "no numeric field 'extraction'"),
        ({"actor_lr": ()}, "population.actor_lr has no values"),
        (
            {"actor_lr": (1e-4, "fast")},
            "population.actor_lr is 'fast'; a value of type float is expected",
        ),
        ({"chains": (4, 0.5)}, "population.chains is 0.5; a value of type int is expected"),
        ({"actor_lr": (1e-4, 3e-4), "clip": (0.1,)}, "actor_lr has 2, clip has 1 values"),
        ({"actor_lr": (1e-4, 1e-4)}, "two members have the same values"),
        ({"chains": (4, 1)}, "algorithm.chains is 1; it must be at least 2"),
    ],
)
def test_values_that_cannot_be_used_are_refused(values, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?").replace("(", r"\(")):
        configured(population=values)


def test_a_traced_hyperparameter_is_an_array_and_as_a_condition_what_members_have_in_common():
    x = jnp.array([1.0, 2.0])

    def use(value):
        number = population.TracedHyperparameter("clip", value, (0.5, 2.0))
        assert number and not population.TracedHyperparameter("clip", value, (0.0, 0.0))
        found = (
            1.0 - number,
            number - 1.0,
            number * x,
            x / number,
            number / 4,
            number**2,
            2.0**number,
            -number,
        )
        return *found, number < 1.0, x > number, number + number, x + number

    for value in (0.5, 2.0):
        expected = (
            1 - value,
            value - 1,
            value * x,
            x / value,
            value / 4,
            value**2,
            2.0**value,
            -value,
        )
        expected = *expected, value < 1, x > value, 2 * value, x + value
        for one, other in zip(jax.jit(use)(jnp.float32(value)), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    with pytest.raises(TypeError):
        jnp.minimum(population.TracedHyperparameter("clip", x[0], (0.5, 2.0)), x)
    mixed = population.TracedHyperparameter("chi2", jnp.float32(0), (0.0, 0.1))
    with pytest.raises(
        ConfigError, match=r"population.chi2 is \(0.0, 0.1\), but 0 leaves a part of the method out"
    ):
        bool(mixed)


TINY = {
    "policy.hidden": "(16,)",
    "policy.steps": "2",
    "algorithm.critic_hidden": "(16,)",
    "algorithm.critics": "2",
    "demonstrations.episodes": "8",
    "pretrain.updates": "10",
    "pretrain.evaluate_every": "10",
    "finetune.envs": "4",
    "finetune.unroll_chunks": "2",
    "finetune.batch_size": "16",
    "finetune.env_steps": "96",
    "finetune.learning_starts": "32",
    "evaluation.episodes": "16",
    "evaluation.every": "96",
}


def command(folder, **fields):
    words = [f"--config.{name}={value}" for name, value in {**TINY, **fields}.items()]
    return [
        "train",
        "--config=experiments/configs/reach.py",
        f"--config.run_dir={folder}",
        *words,
        "--json",
    ]


@pytest.mark.slow
def test_a_population_by_command_has_a_row_a_policy_and_a_column_for_each_member(
    tmp_path, monkeypatch, capsys
):
    """Residual's scale is also used when acting deterministically: each member must be evaluated
    with its own.
    """
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    folder = tmp_path / "run"
    fields = {
        "algorithm.name": "residual",
        "population.scale": "0.1,0.5",
        "algorithm.explore_steps": "32",
    }
    assert main.main(command(folder, **fields)) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out.splitlines()[-1])
    points = ["scale=0.1", "scale=0.5"]
    assert list(summary["success_per_seed"]) == points
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    final = {row["population"]: row for row in rows if row["stage"] == "finetune"}
    assert list(final) == points and all(
        "population" not in row for row in rows if row["stage"] == "base"
    )
    found = inspect.evaluate_policy(folder / "policy" / points[1] / "seed_0", episodes=16, seed=0)
    assert found["return"] == pytest.approx(final[points[1]]["eval/return"], rel=1e-4)
    for point in points:
        facts = json.loads((folder / "policy" / point / "seed_0" / "policy.json").read_text())
        assert facts["algorithm"]["scale"] == float(point.split("=")[1])
    page = (folder / "report" / "report.html").read_text()
    assert all(f"{point}</th>" in page for point in points)
    assert {
        line.split(",")[0]
        for line in (folder / "report" / "table.csv").read_text().splitlines()[1:]
    } == {*points}
    assert all(f"\n{point}\n" in shown.err for point in points)


def test_a_field_that_shapes_the_program_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    assert main.main(command(tmp_path / "run", **{"population.chains": "4,8"})) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "chains cannot vary in one program: ogpo needs its number while it compiles" in said
    assert not (tmp_path / "run" / "policy").exists()


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=64), st.integers(-(2**40), 2**40)
)


@hypothesis.given(a=NUMBERS, b=NUMBERS)
@hypothesis.example(0.1234567, 0.12345671)
@hypothesis.example(1234567, 1234568)
def test_labels_differ_whenever_values_do(a, b):
    one, other = (Member(seed=0, values={"clip": value}).label for value in (a, b))
    assert one != other or a == b


def test_labels_are_short_where_they_can_be():
    values = {"actor_lr": 1e-4, "clip": 0.25, "chains": 8, "sigma": 1 / 3}
    expected = "actor_lr=0.0001,clip=0.25,chains=8,sigma=0.3333333333333333"
    assert Member(seed=0, values=values).label == expected
