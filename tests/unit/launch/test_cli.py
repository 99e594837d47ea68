"""The command line in this process: help, plan, tables, configuration."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from gcp_jax import algorithms, envs
from gcp_jax.config import ConfigError
from gcp_jax.envs.demos import storage
from gcp_jax.experiments import assemble, comparison, run_config
from gcp_jax.experiments.plan import plan
from gcp_jax.launch import Sweep, grid
from gcp_jax.launch.cli import main, sweep, train
from gcp_jax.launch.cli.parse import declared_flags, parse
from gcp_jax.launch.expand import expand
from gcp_jax.run.errors import Decayed
from gcp_jax.run.sizes import run_sizes

REACH = "experiments/configs/reach.py"
PEG_INSERT = "experiments/configs/peg_insert.py"


@pytest.fixture(autouse=True)
def keep_cache(monkeypatch):
    """The tests keep their own compilation cache, and a plan traces only what a test asks for."""
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.setattr(plan, "_peak", lambda config, task: 0)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert main.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"gcp-jax {name}") and "--json" in shown


def test_help_lists_the_commands_and_an_unknown_one_is_refused(capsys):
    assert main.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in main.COMMANDS)
    assert main.main(["trian"]) == 2
    assert "allowed: train" in capsys.readouterr().err


def test_dashes_in_options_are_underscores():
    words = ["my-file.py", "--dry-run", "--run-dir=a-b", "--max-parallel=3"]
    arguments = parse("sweep", main.load_command("sweep"), words)
    assert arguments.flags.dry_run
    assert arguments.flags.max_parallel == 3
    assert arguments.flags.run_dir == "a-b"
    assert arguments.positional == ["my-file.py"]


@pytest.mark.parametrize("name", ["benchmark", "sweep"])
def test_fields_of_every_run_are_given_as_for_train(name):
    words = ["--config.seeds=2", "--config.video=false", "--config.policy.hidden=(8,8)"]
    arguments = parse(name, main.load_command(name), [*words, "--config.env.name=reach"])
    assert arguments.overrides == {
        "seeds": 2,
        "video": False,
        "policy.hidden": (8, 8),
        "env.name": "reach",
    }


def test_a_sweep_takes_fields_of_every_run_but_not_those_that_it_varies():
    declared = Sweep(REACH, (grid("finetune.utd", (0.1, 0.2)),), seeds=2)
    changed = sweep.with_overrides(declared, {"seeds": 3, "finetune.envs": 32})
    assert {run.config.finetune.envs for run in expand(changed)} == {32}
    assert {run.config.seeds for run in expand(changed)} == {3}
    with pytest.raises(ConfigError, match=r"finetune\.utd is set twice"):
        sweep.with_overrides(declared, {"finetune.utd": 1.0})


def test_the_run_folder_is_named_alike_by_all_commands(tmp_path, monkeypatch):
    taken = []

    class Training:
        def __init__(self, config, task, folder, command):
            taken.append((config.run_dir, folder))

        def run(self):
            raise RuntimeError("stop here")

    monkeypatch.setattr(train, "Training", Training)
    folder = str(tmp_path / "run")
    for word in (f"--run_dir={folder}", f"--run-dir={folder}", f"--config.run_dir={folder}"):
        assert main.main(["train", f"--config={REACH}", word]) == 2
    assert taken == [(folder, tmp_path / "run")] * 3
    monkeypatch.setattr(comparison, "run", lambda chosen, folder, command: taken.append(folder))
    for word in (f"--run_dir={folder}", f"--config.run_dir={folder}"):
        assert main.main(["benchmark", "--algorithms=qc", "--envs=reach", word]) == 0
    assert taken[3:] == [tmp_path / "run"] * 2


def test_a_run_below_its_base_policy_gets_a_report_and_an_exit_code_of_its_own(
    tmp_path, monkeypatch, capsys
):
    class Training:
        def __init__(self, config, task, folder, command):
            pass

        def run(self):
            raise Decayed("stopped at 64 of 160 env steps")

    monkeypatch.setattr(train, "Training", Training)
    monkeypatch.setattr(train.run_page, "write", lambda folder: folder / "report.html")
    assert main.main(["train", f"--config={REACH}", f"--run_dir={tmp_path / 'run'}"]) == 4
    report, line = capsys.readouterr().err.splitlines()[-2:]
    assert report == f"report: {tmp_path / 'run' / 'report.html'}"
    assert line == "gcp-jax train: stopped at 64 of 160 env steps"


def test_plan_counts_without_compiling(capsys, monkeypatch):
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda *a, **k: pytest.fail("plan compiled something")
    )
    flags = [
        "--config.seeds=3",
        "--config.finetune.env_steps=40960",
        "--config.finetune.learning_starts=4096",
    ]
    assert main.main(["plan", f"--config={REACH}", *flags, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert numbers["env_steps_per_segment"] == 64 * 8 * 4
    assert numbers["segments"] == 20 and numbers["warmup_env_steps"] == 4096
    assert numbers["updates"] == 18 * numbers["updates_per_segment"]
    assert numbers["utd"] == pytest.approx(numbers["updates_per_segment"] / 2048)


def test_plan_predicts_the_bytes_of_the_state():
    run = run_config.frozen_config(run_config.defaults("reach"))
    task = assemble.make_task(run, film=False)
    numbers = plan.plan(run, task)
    size = run_sizes(run, task.env.specs)
    rows = size.capacity * run.finetune.envs
    step = 4 * (2 * size.specs.obs_dim + size.specs.action_dim + 1) + 4
    assert numbers["replay_bytes"] == rows * run.policy.chunk * step
    assert "best_state_bytes" not in numbers
    restore = dataclasses.replace(run.finetune, on_decay="restore")
    kept = plan.plan(dataclasses.replace(run, finetune=restore), task)
    assert kept == {**numbers, "best_state_bytes": numbers["state_bytes"]}
    widths = [
        size.specs.obs_dim + size.specs.flat_action_dim + 32,
        *run.policy.hidden,
        size.specs.flat_action_dim,
    ]
    dense = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    assert numbers["policy_parameters"] == dense + (32 + 1) * 64 + (64 + 1) * 32


def test_tables_name_what_there_is(capsys):
    assert main.main(["envs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {"peg_insert", "pick_place", "push_t", "reach"} <= set(found)
    assert main.main(["algorithms"]) == 0
    assert "--config.algorithm.conservative" in capsys.readouterr().out


def test_a_task_whose_package_is_not_installed_stays_in_the_table(capsys, monkeypatch):
    made = envs.make

    def make(name):
        if name == "reach":
            raise ImportError('its model is elsewhere: pip install "gcp-jax[robots]"')
        return made(name)

    monkeypatch.setattr(envs, "make", make)
    assert main.main(["envs", "--json"]) == 0
    shown = capsys.readouterr()
    assert (
        "elsewhere" in shown.err
        and "elsewhere" in json.loads(shown.out.splitlines()[-1])["reach"]["missing"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "name at least one run folder"),
        (["report", "nowhere"], "nowhere"),
        (["report", "a", "b"], "gcp-jax report a b --out=DIR"),
        (["demos", "--episodes=2"], "name one task, e.g. gcp-jax demos reach, or your own by"),
        (["render"], "name one task, e.g. gcp-jax render reach"),
        (["render", "--config.env.module=gone.py"], "env.module='gone.py': there is no such file"),
        (["plan", "--config.algorithm.module=a/b.py"], "algorithm.module='a/b.py': there is no"),
        (["plan", "--config="], "--config= lacks its file, e.g. --config=experiments/"),
        (["plan", "--config=docs"], "cannot read --config=docs: it is a folder; give a file in it"),
        (
            ["plan", "--config=experiments/configs/none.py"],
            "run the command in the folder of the repository, or give the file's whole path",
        ),
        (["plan", "--config.nope=1"], "there is no field 'nope'; allowed: algorithm, allow_"),
        (["plan", "--config.seed_=1"], "there is no field 'seed_'; did you mean 'seed'"),
        (["plan", "--config.population.actor_lr=nan"], "actor_lr=nan: every number must be finite"),
        (
            ["plan", "--config.population.actor_lr=1e-4,inf"],
            "actor_lr=1e-4,inf: every number must be finite",
        ),
        (
            ["plan", "--config.population.actor_lr=a,b"],
            "population.actor_lr is 'a'; a value of type float is expected",
        ),
        (["plan", "--config.env.name="], "env.name is missing; e.g. env.name='reach'"),
        (
            ["plan", "--config.algorithm.name="],
            "algorithm.name is missing; e.g. algorithm.name='ogpo'",
        ),
        (["evaluate"], "name one saved policy"),
        (["evaluate", "nowhere"], "not a saved policy"),
        (
            ["render", "nowhere"],
            "nowhere is no saved policy, and no environment is called 'nowhere'",
        ),
        (["check", "peg_insrt"], "did you mean 'peg_insert'"),
        (
            ["check", "--config.env.module=nowhere"],
            "env.module='nowhere' cannot be imported: no nowhere.py",
        ),
        (
            ["check", "--config.env.module=json"],
            "json has no Config; see docs/guides/add_an_environment.md",
        ),
        (
            ["demos", "reach", "--quality=superb"],
            "quality is 'superb'; allowed: expert, mixed, poor, bad",
        ),
        (["demos", "reach", "--out=tests"], "tests exists and is not empty"),
        (["plan", "--config.finetune.envs=1000000000"], "unroll_chunks · policy.chunk is 320000"),
        (["plan", "--config.finetune.utd=1e30"], "finetune.utd · the env steps of a segment is 2"),
        (["plan", "--config.seed=2147483648"], "seed is 2147483648; it must be in [0, 2147483647]"),
        (
            ["plan", "--config.demonstrations.noise=1e300"],
            "noise is 1e+300; it must be in [0, 100]",
        ),
        (["plan", "--config.policy.sigma=1e30"], "policy.sigma is 1e+30; it must be in (0, 10]"),
        (["plan", "--config.policy.steps=10000"], "policy.steps is 10000; it must be in [1, 1000]"),
        (
            ["plan", "--config.env.name=reach", "--config.env.randomize.action_delay=1000"],
            "action_delay is 1000; it must be below the 24 steps of an episode",
        ),
        (
            ["demos", "reach", "--config.demonstrations.episodes=9"],
            "--config.demonstrations.episodes cannot be used here; use --episodes",
        ),
        (["demos", "reach", "--config.seed=9"], "--config.seed cannot be used here; use --seed"),
        (
            ["train", "--run_dir=a", "--config.run_dir=b"],
            "--run_dir=a and --config.run_dir=b are the same setting",
        ),
        (
            ["benchmark", "--run_dir=a", "--config.run_dir=b"],
            "--run_dir=a and --config.run_dir=b are the same setting",
        ),
        (
            ["benchmark", "--algorithms=qc", "--envs=reach", "--config.seeds=0"],
            "--config.seeds cannot be used here; use --seeds",
        ),
        (
            ["plan", "--config.env.name=reach", "--config.env.randomize.mass=2.0"],
            "randomize.mass is 2.0; it must be in [0, 1)",
        ),
        (["plan", "--config.demonstrations.path=tests"], "tests has no dataset.json"),
        (["plan", "extra"], "unexpected 'extra'"),
        (["plan", "--config=nowhere.py"], "nowhere.py"),
        (["plan", "--config", "nowhere.py"], "nowhere.py"),
        (["plan", "--config.algorithm.name=ogpoo"], "did you mean 'ogpo'"),
        (["plan", "--config.algorithm.module=nowhere"], "put nowhere.py in the current folder"),
        (
            ["plan", "--config.algorithm.module=json"],
            "'json' is not a method: it lacks Config, make",
        ),
        (["plan", "--config.algorithm.name=qc", "--config.algorithm.chains=4"], "chains"),
        (["plan", "--config.env.name=peg"], "no environment is called 'peg'"),
        (
            ["plan", "--config.finetune.demo_fraction=1.5"],
            "finetune.demo_fraction is 1.5; it must be in [0, 1)",
        ),
        (
            ["plan", "--config.algorithm.name=dppo", "--config.finetune.demo_fraction=0.5"],
            "it must be 0",
        ),
        (
            [
                "plan",
                "--config.algorithm.name=dsrl",
                "--config.algorithm.mode=sac",
                "--config.finetune.demo_fraction=0.5",
            ],
            "it must be 0",
        ),
        (["plan", "--config.policy.train_steps=10"], "only policy.family='diffusion' has any"),
        (["benchmark", "--algorithms=ogpo"], "nothing to compare"),
        (["benchmark", "--config.seeds"], "--config.seeds lacks its value"),
        (["sweep", f"--config={REACH}"], "cannot be used here, only --config.FIELD=VALUE"),
        (["envs", "peg"], "no environment is called 'peg'"),
        (["algorithms", "ogpoo"], "did you mean 'ogpo'"),
        (["plan", "--config.finetune.utdd=1"], "no field 'finetune.utdd'; did you mean 'utd'"),
        (["plan", f"--config={REACH}", "--config.nothing=1"], "nothing"),
        (["plan", f"--config={REACH}", "--wrong=1"], "wrong"),
        (["plan", f"--config={REACH}", "--config.seeds=0"], "seeds is 0"),
        (["plan", f"--config={REACH}", "--config.algorithm.chains=1"], "at least 2"),
        (["plan", f"--config={REACH}", "--config.algorithm.chi2=0.1"], "conservative=False"),
        (["plan", f"--config={REACH}", "--config.pretrain.stop_at_success=1.5"], "(0, 1]"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert main.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err
    assert len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize("value", [2**31, 10**11, -(2**63), 99999999999999999999])
def test_no_flag_takes_a_number_beyond_32_bits(value, capsys):
    """Nothing is begun: the error names the flag and its bounds."""
    for name in main.COMMANDS:
        declared = declared_flags(main.load_command(name))
        for flag in declared:
            if declared[flag].flag_type() not in ("int", "float"):
                continue
            assert main.main([name, "reach", f"--{flag}={value}"]) == 2
            shown = capsys.readouterr().err.strip()
            assert f"--{flag}={value}" in shown and len(shown.splitlines()) == 1


def test_demonstrations_are_written_and_cloned_from_disk(tmp_path, capsys):
    out = tmp_path / "demos"
    written = [
        "demos",
        "reach",
        "--quality=poor",
        "--episodes=6",
        f"--out={out}",
        "--config.env.horizon=12",
        "--json",
    ]
    assert main.main(written) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["episodes"], facts["quality"], facts["env"]["horizon"]) == (6, "poor", 12)
    assert sum(facts["modes"]) == 6 and facts["steps"] <= 6 * 12
    plan = ["plan", "--config.env.name=reach", f"--config.demonstrations.path={out}"]
    assert main.main([*plan, "--config.demonstrations.episodes=6"]) == 0
    run = run_config.frozen_config(_reading(out, episodes=4))
    read, facts = assemble.make_task(run).demonstrate(jax.random.key(0))
    dataset = storage.read(out)
    assert facts["episodes"] == 4 and len(read.start) == 4
    np.testing.assert_array_equal(read.steps.obs, dataset.steps["obs"][: dataset.start[4]])
    assert f"{out} was recorded with env.horizon=12, not 24\n" in capsys.readouterr().err
    assert main.main([*plan, "--config.demonstrations.episodes=7"]) == 2
    assert "has 6 episodes, demonstrations.episodes asks for 7" in capsys.readouterr().err
    other = ["plan", "--config.env.name=peg_insert", f"--config.demonstrations.path={out}"]
    assert main.main([*other, "--config.demonstrations.episodes=6"]) == 2
    assert "has obs_dim=4, but peg_insert has 13" in capsys.readouterr().err


def _reading(path, episodes):
    config = run_config.defaults("reach")
    config.demonstrations.path, config.demonstrations.episodes = str(path), episodes
    return config


def test_a_task_without_demonstrator_asks_for_something_to_clone(monkeypatch):
    made = envs.make("reach")
    without = made._replace(demonstrator=None)
    monkeypatch.setattr(assemble, "build_env", lambda choice: without)
    with pytest.raises(ConfigError, match="reach has no demonstrator; name a dataset"):
        assemble.make_task(run_config.frozen_config(run_config.defaults("reach")))


def test_every_shipped_configuration_plans():
    for name in ("peg_insert", "pick_place", "push_t", "reach"):
        assert main.main(["plan", f"--config=experiments/configs/{name}.py"]) == 0


@pytest.mark.parametrize("name", algorithms.names())
def test_a_method_is_chosen_by_its_name_with_its_own_fields(name, capsys):
    field = {"dppo": "gae_lambda=0.9"}.get(name, "critics=7")
    words = [
        f"--config={PEG_INSERT}",
        f"--config.algorithm.name={name}",
        f"--config.algorithm.{field}",
        "--config.policy.family=diffusion",
    ]
    assert main.main(["plan", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["algorithm"] == name
    config = parse("plan", main.load_command("plan"), words).run_config
    attribute, value = field.split("=")
    assert getattr(config.algorithm.settings, attribute) == float(value)
    assert config.policy.family == "diffusion"


def _config(*words):
    return parse("train", main.load_command("train"), words).run_config


FILES = {
    **{name: name for name in ("peg_insert", "pick_place", "push_t", "reach")},
    **{f"poor:{env}": f"poor.py:{env}" for env in envs.names()},
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_naming_what_a_file_has_changes_nothing(file):
    """Neither the task nor the method of a shipped configuration."""
    path, _, argument = file.partition(":")
    word = f"--config=experiments/configs/{path.removesuffix('.py')}.py"
    word += f":{argument}" if argument else ""
    config = _config(word)
    named = [
        f"--config.env.name={config.env.name}",
        f"--config.algorithm.name={config.algorithm.name}",
    ]
    assert _config(word, *named) == config


@pytest.mark.parametrize("name", algorithms.names())
def test_a_method_has_its_own_defaults_however_it_is_chosen(name):
    config = _config(f"--config.algorithm.name={name}")
    assert config.algorithm.settings == algorithms.load(name).Config()
    assert config == run_config.frozen_config(run_config.defaults(algorithm=name))
    if name == "ogpo":
        assert config == _config()


@pytest.mark.parametrize("name", envs.names())
def test_a_task_has_its_own_defaults_however_it_is_chosen(name):
    config = _config(f"--config.env.name={name}")
    assert config.env.settings == envs.load(name).config()
    assert config == run_config.frozen_config(run_config.defaults(env=name))
    assert dataclasses.replace(config, env=_config().env) == _config()


def test_a_second_ctrl_c_ends_a_command_in_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    command = main.load_command("plan")._replace(run=interrupted)
    monkeypatch.setattr(main, "load_command", lambda name: command)
    assert main.main(["plan"]) == 130
    assert capsys.readouterr().err == "gcp-jax plan: interrupted; what was saved is kept.\n"
