"""What a sweep refuses, it refuses before its folder is made or changed."""

import importlib.util
import sys
import types

import pytest

from gcp_jax.config import ConfigError
from gcp_jax.launch import dry_run, worker
from gcp_jax.launch.cli import main

SWEEP = """
from gcp_jax.launch import Search, Sweep, grid, log_uniform

def get_sweep():
    rates = "algorithm.critic_lr"
    search = Search({{rates: log_uniform(1e-4, 1e-2)}}, trials=2)
    return Sweep("experiments/configs/reach.py", {arguments})
"""
AXES = "(grid(rates, (1e-4, 1e-3)),)"


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Launch a sweep that is refused; the line."""
    monkeypatch.setattr(main, "compilation_cache", lambda: None)
    monkeypatch.setattr(dry_run, "run_sizes", lambda runs: {})

    def launch(*words, arguments=AXES, folder="sweep"):
        path = tmp_path / "mine.py"
        path.write_text(SWEEP.format(arguments=arguments))
        assert main.main(["sweep", str(path), f"--run_dir={tmp_path / folder}", *words]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return launch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend=cloud"], "--backend=cloud; allowed: local, ray, slurm"),
        (["--backend=ray", "--resources=CPU=nan"], "--resources=CPU=nan; give NAME=AMOUNT, a num"),
        (["--backend=ray", "--resources=CPU=inf"], "--resources=CPU=inf; give NAME=AMOUNT"),
        (["--backend=ray", "--resources=CPU=-1"], "--resources=CPU=-1; give NAME=AMOUNT"),
        (["--backend=ray", "--resources=GPU"], "--resources=GPU; give NAME=AMOUNT"),
        (["--backend=ray", "--resources==2"], "--resources==2; give NAME=AMOUNT"),
        (["--slurm=partition"], "--slurm=partition; give NAME=VALUE"),
        (["--slurm==gpu"], "--slurm==gpu; give NAME=VALUE"),
        (["--max_parallel=100000"], "--max_parallel=100000, but this machine has"),
        (["--config.writers=foo"], "writers is 'foo'"),
    ],
    ids=str,
)
def test_nothing_is_written_for_flags_that_are_refused(refused, tmp_path, words, message):
    assert message in refused(*words)
    assert not (tmp_path / "sweep").exists()


def test_nothing_is_written_without_slurm(refused, tmp_path, monkeypatch):
    def no_slurm(folder):
        raise RuntimeError("no srun here")

    fake = types.SimpleNamespace(SlurmExecutor=no_slurm, SlurmJob=None)
    monkeypatch.setitem(sys.modules, "submitit.slurm.slurm", fake)
    assert "--backend=slurm: no srun here" in refused("--backend=slurm")
    assert not (tmp_path / "sweep").exists()


def test_nothing_is_written_without_the_package_of_a_search(refused, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name)
    )
    line = refused(arguments="search=search")
    assert "a search needs Optuna: pip install 'gcp-jax[search]'" in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:train", "entry_point='nowhere:train' cannot be imported"),
        ("helpers.counting:nothing", "there is no function 'nothing' in helpers.counting"),
        ("helpers.counting", "there is no function '' in helpers.counting"),
        (":train", "entry_point=':train' cannot be imported"),
    ],
)
def test_an_entry_point_that_is_not_there_is_refused(refused, tmp_path, name, message):
    assert message in refused(arguments=f"{AXES}, entry_point={name!r}")
    assert not (tmp_path / "sweep").exists()
    with pytest.raises(ConfigError, match="sweep's entry_point"):
        worker.load_entry_point(name)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_list_of_runs_is_left_as_it_is(refused, tmp_path, content):
    (tmp_path / "sweep").mkdir()
    path = tmp_path / "sweep" / "sweep.json"
    path.write_text(content)
    assert str(tmp_path / "sweep") in refused()
    assert path.read_text() == content
    assert list((tmp_path / "sweep").iterdir()) == [path]


def test_a_damaged_journal_of_a_search_is_one_line(refused, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "sweep").mkdir()
    content = '{"format": 1, "file": "mine.py", "commands": [], "runs": {}}'
    (tmp_path / "sweep" / "sweep.json").write_text(content)
    (tmp_path / "sweep" / "optuna.journal").write_text("nonsense\n{}\n")
    line = refused(arguments="search=search")
    assert f"{tmp_path}/sweep/optuna.journal is damaged" in line
