"""Sweeps as they are run: what is skipped, tried again, resumed, stopped early, searched, and told; on each backend."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import counting

from benchmarks.faults import kill_machine, last_attempt
from gcp_jax.config import ConfigError
from gcp_jax.launch import (
    Halving,
    Search,
    Sweep,
    backends,
    grid,
    launcher,
    log_uniform,
    schedulers,
    spec,
    status,
    sweep_page,
)
from gcp_jax.launch.cli import main, sweep
from gcp_jax.launch.worker import Job, JobResult
from gcp_jax.run import metrics

REACH = "experiments/configs/reach.py"
RATES = grid("algorithm.critic_lr", (1e-4, 3e-4, 1e-3, 3e-3))
SHORT = {"finetune.env_steps": 24, "finetune.learning_starts": 0}
ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.unmeasured


def counted(*axes, **more) -> Sweep:
    return Sweep(
        REACH,
        axes or (RATES,),
        fields={**SHORT, **more.pop("fields", {})},
        work="helpers.counting:count",
        **more,
    )


class Here:
    """Attempts done one after the other in this process."""

    def __init__(self, most=None):
        self.left = most

    def submit(self, jobs):
        from gcp_jax.launch import worker

        futures = []
        for job in jobs:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            futures.append(launcher.Future())
            futures[-1].set_result(worker.work(job))
        return futures

    def close(self):
        pass


def run(chosen: Sweep, folder: Path, backend=None, *, retries=1):
    """Everything that ``gcp-jax sweep`` does but for reading flags and checking sizes; (how it ended, what was told)."""
    runs, told = [] if chosen.search else spec.runs(chosen), []
    launcher.describe(runs, folder, file="mine.py", command="gcp-jax sweep")
    plan = schedulers.make(chosen, runs, folder)
    ended = launcher.launch(
        chosen, plan, folder, backend or Here(), retries=retries, told=told.append
    )
    return ended, told


def numbers(folder: Path) -> dict[str, str]:
    """What every run came to."""
    return {
        path.parent.name: json.loads(path.read_text())["number"]
        for path in folder.glob("runs/*/summary.json")
    }


def steps(folder: Path) -> dict[str, list[int]]:
    """The steps of every run, in the order they were done."""
    return {
        path.parent.name: [int(line) for line in path.read_text().split()]
        for path in folder.glob("runs/*/steps.txt")
    }


def check_resumed(done: list[int], total: int) -> None:
    """Nothing is left out, and nothing done again but what came after a checkpoint."""
    assert set(done) == set(range(1, total + 1))
    for before, now in zip(done, done[1:], strict=False):
        assert now in (
            before + 1,
            before - (before - 1) % counting.SAVE,
        )  # a step is noted before it is saved


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    ended, _ = run(counted(), folder)
    assert ended == launcher.LaunchSummary(4, 0, {})
    return folder


def test_a_second_launch_does_nothing(undisturbed):
    before = steps(undisturbed)
    ended, _ = run(counted(), undisturbed)
    assert ended == launcher.LaunchSummary(0, 4, {}) and steps(undisturbed) == before


def test_a_grown_sweep_runs_what_is_new(undisturbed, tmp_path):
    folder = tmp_path / "grown"
    shutil.copytree(undisturbed, folder)
    ended, _ = run(counted(grid("algorithm.critic_lr", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2))), folder)
    assert ended == launcher.LaunchSummary(1, 4, {})
    assert len(launcher.read(folder)["runs"]) == 5


def test_a_stopped_launch_goes_on(undisturbed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(counted(), tmp_path, Here(most=2))
    ended, _ = run(counted(), tmp_path)
    assert ended == launcher.LaunchSummary(2, 2, {}) and numbers(tmp_path) == numbers(undisturbed)


def test_a_run_that_fails_is_tried_again_and_stops_no_other(tmp_path):
    chosen = counted(grid("pretrain.artifact", ("", "fail once", "fail")))
    ended, told = run(chosen, tmp_path, retries=2)
    bad = {run.values["pretrain.artifact"]: run.id for run in spec.runs(chosen)}
    assert ended == launcher.LaunchSummary(2, 0, {bad["fail"]: "counted wrongly"})
    assert (
        sum(bad["fail"] in line for line in told) == 3
        and sum(bad["fail once"] in line for line in told) == 1
    )
    assert (
        "counted wrongly" in (launcher.folder_of(tmp_path, bad["fail"]) / "error.txt").read_text()
    )
    found = {run.id: run for run in status.standings(tmp_path)}
    assert found[bad["fail"]].state == "failed" and found[bad["fail"]].error == "counted wrongly"
    page = sweep_page.write(tmp_path).read_text()
    assert "Runs that failed" in page and "counted wrongly" in page


def test_status_is_read_from_the_folders(tmp_path):
    chosen = counted()
    first, second, third, fourth = (run.id for run in spec.runs(chosen))
    launcher.describe(spec.runs(chosen), tmp_path, file="mine.py", command="gcp-jax sweep")
    assert {run.state for run in status.standings(tmp_path)} == {"waiting"}
    for name, how in ((first, None), (second, "died"), (third, "paused")):
        folder = launcher.folder_of(tmp_path, name)
        folder.mkdir(parents=True)
        rows = [{"began": 0.0}] + [{"ended": 1.0, "outcome": how, "error": "killed"}] * bool(how)
        (folder / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    beat = launcher.folder_of(tmp_path, first) / "alive"
    beat.touch()
    (launcher.folder_of(tmp_path, first) / "config.json").write_text(
        json.dumps({"config": {"finetune": {"env_steps": 100}}})
    )
    row = {"stage": "finetune", "env_steps": 25, "train_seconds": 10.0}
    (launcher.folder_of(tmp_path, first) / "metrics.jsonl").write_text(
        json.dumps(row) + "\n" + '{"stage": "fin'
    )
    found = {run.id: run for run in status.standings(tmp_path)}
    assert [found[name].state for name in (first, second, third, fourth)] == [
        "running",
        "failed",
        "paused",
        "waiting",
    ]
    assert (found[first].done, found[first].total, found[first].left) == (25, 100, 30.0)
    os.utime(beat, (time.time() - status.SILENT - 1,) * 2)
    assert status.standings(tmp_path)[0].state == "waiting"
    assert (
        status.headline(list(found.values())) == "4 runs: 1 running, 1 waiting, 1 paused, 1 failed"
    )


def test_the_time_left_is_that_of_the_runs_that_are_finished():
    one = status.RunStatus("a", {}, "finished", 9, 9, "", "", None, 60.0, "")
    found = [
        one,
        one,
        one._replace(state="running", left=20.0, spent=0.0),
        one._replace(state="waiting", spent=0.0),
    ]
    assert status.left(found) == 80.0
    assert status.headline(found) == "4 runs: 1 running, 1 waiting, 2 finished · about 0:01:20 left"
    assert status.left(found[:2]) is None


def test_halving_keeps_the_best_of_each_rung(undisturbed, tmp_path):
    chosen = dataclasses.replace(counted(), halving=Halving((8, 16), keep=2))
    ended, _ = run(chosen, tmp_path)
    by_rate = {run.config.algorithm["critic_lr"]: run.id for run in spec.runs(chosen)}
    done = {name: len(all_steps) for name, all_steps in steps(tmp_path).items()}
    assert {rate: done[name] for rate, name in by_rate.items()} == {
        1e-4: 8,
        3e-4: 8,
        3e-3: 16,
        1e-3: 24,
    }
    assert ended.finished == 1 and not ended.failed
    assert numbers(tmp_path).items() <= numbers(undisturbed).items()
    states = {run.id: run for run in status.standings(tmp_path)}
    assert (
        states[by_rate[1e-4]].state == "dropped" and "place 4 of 4" in states[by_rate[1e-4]].error
    )


@pytest.mark.parametrize("most", [1, 3, 5, 6])
def test_halving_goes_on_where_it_was_stopped(tmp_path, most):
    chosen = dataclasses.replace(counted(), halving=Halving((8, 16), keep=2))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(chosen, whole)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, cut, Here(most=most))
    run(chosen, cut)
    assert steps(cut) == steps(whole) and numbers(cut) == numbers(whole)
    dropped = [
        {p.parent.name: p.read_text() for p in f.glob("runs/*/dropped.txt")} for f in (whole, cut)
    ]
    assert dropped[0] == dropped[1]


SEARCH = Search({"algorithm.critic_lr": log_uniform(1e-5, 1e-1)}, trials=14, parallel=1)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_finds_what_is_good_and_goes_on_as_if_never_stopped(tmp_path, sampler):
    chosen = counted(
        grid("finetune.utd", (0.1,)), search=dataclasses.replace(SEARCH, sampler=sampler)
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(chosen, whole)[0].finished == 14
    with pytest.raises(KeyboardInterrupt):
        run(chosen, cut, Here(most=12))
    run(chosen, cut)
    assert numbers(cut) == numbers(whole) and steps(cut) == steps(whole)
    assert len(launcher.read(whole)["runs"]) == 14
    best = sweep_page.read(whole).scored[0]
    assert 10**-4 < best.values["algorithm.critic_lr"] < 10**-2


def test_a_search_survives_a_trial_that_fails(tmp_path):
    chosen = counted(
        grid("pretrain.artifact", ("fail",)), search=dataclasses.replace(SEARCH, trials=3)
    )
    ended, _ = run(chosen, tmp_path, retries=0)
    assert ended.finished == 0 and len(ended.failed) == 3


def test_the_report_ranks_settings_and_tells_how_to_repeat_them(tmp_path):
    chosen = counted(
        RATES,
        grid("finetune.utd", (0.1, 0.2)),
        pack=("algorithm.critic_lr",),
        seeds=2,
        spread_seeds=True,
    )
    run(chosen, tmp_path)
    found = sweep_page.read(tmp_path)
    assert len(found.settings) == 8 and all(len(s.scores) == 2 for s in found.settings)
    assert [s.values["algorithm.critic_lr"] for s in found.scored[:2]] == [1e-3, 1e-3]
    assert found.fields == ["finetune.utd", "algorithm.critic_lr"]
    page = sweep_page.write(tmp_path)
    text, table = page.read_text(), (page.parent / "table.csv").read_text().splitlines()
    assert "gcp-jax train --config=experiments/configs/reach.py" in text and len(table) == 9
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "table.csv",
        "curves.png",
        "marginals.png",
    }


def test_a_report_of_a_sweep_that_has_not_begun(tmp_path):
    chosen = counted()
    launcher.describe(spec.runs(chosen), tmp_path, file="mine.py", command="gcp-jax sweep")
    assert "4 runs: 4 waiting" in sweep_page.write(tmp_path).read_text()


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(slow, tmp_path):
    folder = tmp_path / "sweep"
    limited = [
        "bash",
        "-c",
        'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 0 && exec "$@"',
        "bash",
        *command(slow, folder, "--slots=1"),
    ]
    found = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith(
        f"gcp-jax sweep: [Errno 27] cannot write {folder}/sweep.json: File too large"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_disk_that_is_full_for_a_run_fails_that_run(tmp_path, monkeypatch):
    chosen = counted()

    def full(path, content):
        raise OSError(28, f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(counting, "write_json", full)
        ended, _ = run(chosen, tmp_path, retries=0)
    assert len(ended.failed) == 4 and all(
        "No space left on device" in error for error in ended.failed.values()
    )
    assert run(chosen, tmp_path)[0] == launcher.LaunchSummary(4, 0, {})


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no sweep"):
        launcher.read(tmp_path)
    (tmp_path / "sweep.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match="holds a sweep of format 0, this version reads 1"):
        launcher.read(tmp_path)


# ── processes of this machine ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def local():
    backend = backends.Local([backends.WorkerSlot({}, ())] * 2, 1)
    yield backend
    backend.close()


def test_a_worker_that_dies_takes_one_attempt_with_it(local, tmp_path, undisturbed):
    chosen = counted(RATES, grid("pretrain.artifact", ("", "die once")))
    ended, told = run(chosen, tmp_path, local)
    assert ended == launcher.LaunchSummary(8, 0, {})
    assert sum("died (attempt 1 of 2)" in line for line in told) >= 4
    assert numbers(undisturbed).items() <= numbers(tmp_path).items()


def command(file: Path, folder: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gcp_jax.launch.cli.main",
        "sweep",
        str(file),
        f"--run_dir={folder}",
        *words,
    ]


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """The file of a sweep whose runs take seconds."""
    monkeypatch.setenv("COUNTING_SECONDS", "0.1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    file = tmp_path / "slow.py"
    file.write_text(
        "from launch import *\n"
        f"def get_sweep():\n    return Sweep({REACH!r}, (grid('algorithm.critic_lr', (1e-4, 3e-4, 1e-3, 3e-3)),), "
        f"fields={SHORT!r}, work='counting:count')\n"
    )
    return file


@contextlib.contextmanager
def started_launcher(*words, **streams):
    """``command`` at work; nothing of it is left behind."""
    with subprocess.Popen(command(*words), cwd=ROOT, text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition, process=None, seconds=600.0):
    """Wait for it, as long as the ``process`` that is to bring it about lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, (
            f"ended with {process.returncode} before that"
        )
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


def working(folder: Path) -> list[int]:
    """Processes that are at a run, by what its folder says."""
    newest = [last_attempt(path.parent) for path in folder.glob("runs/*/attempts.jsonl")]
    return [row["pid"] for row in newest if "pid" in row]


def test_killed_launchers_and_workers_lose_and_repeat_nothing(slow, tmp_path, undisturbed):
    folder = tmp_path / "sweep"
    with started_launcher(slow, folder, "--slots=2", stderr=subprocess.DEVNULL) as process:
        until(lambda: any(len(done) > counting.SAVE for done in steps(folder).values()), process)
        os.kill(working(folder)[0], signal.SIGKILL)
        until(lambda: len(numbers(folder)) >= 1, process)
    again = subprocess.run(
        command(slow, folder, "--slots=2", "--json"), capture_output=True, text=True, cwd=ROOT
    )
    assert again.returncode == 0, again.stderr
    ended = json.loads(again.stdout.splitlines()[-1])
    assert ended["finished"] == 4 and not ended["failed"]
    workers = [
        row["pid"]
        for path in folder.glob("runs/*/attempts.jsonl")
        for row in metrics.rows(path)
        if "pid" in row
    ]
    until(lambda: not any(map(psutil.pid_exists, workers)))
    assert numbers(folder) == numbers(undisturbed)
    for done in steps(folder).values():
        check_resumed(done, SHORT["finetune.env_steps"])


# ── Ray ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def ray_cluster(nodes: int):
    """A head that runs nothing, and worker nodes of one CPU."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(nodes)]
    finally:
        cluster.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_ray_finishes_every_run_when_a_node_is_killed(tmp_path, slow, undisturbed):
    folder = tmp_path / "sweep"
    with (
        ray_cluster(2) as (cluster, nodes),
        started_launcher(
            slow,
            folder,
            "--on=ray",
            f"--address={cluster.address}",
            "--json",
            stdout=subprocess.PIPE,
        ) as process,
    ):
        until(lambda: working(folder) and any(map(len, steps(folder).values())), process)
        kill_machine(nodes, working(folder)[0])
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["finished"] == 4
    assert numbers(folder) == numbers(undisturbed)
    attempts = [path.read_text() for path in folder.glob("runs/*/attempts.jsonl")]
    assert any(text.count("began") > 1 for text in attempts)
    for done in steps(folder).values():
        check_resumed(done, SHORT["finetune.env_steps"])


def test_a_dead_ray_address_is_told_in_one_line():
    with pytest.raises(ConfigError, match="no Ray cluster answers there") as error:
        backends.Ray("127.0.0.1:9", {}, 1)
    assert "\n" not in str(error.value)


def test_the_manifest_for_tpus_names_what_there_is():
    manifest = yaml.safe_load((ROOT / "launch/tpu.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    program, name, file, *words = manifest["spec"]["entrypoint"].split()
    assert program == "gcp-jax" and (ROOT / file).is_file()
    values, positional = main._parse(name, main.COMMANDS[name], [file, *words])
    assert positional == [file] and values["on"].value in backends.NAMES
    asked = sweep.amounts(values["resources"].value)
    cluster = manifest["spec"]["rayClusterSpec"]
    [container] = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    has = container["resources"]["limits"]
    assert asked == {"TPU": float(has["google.com/tpu"]), "CPU": float(has["cpu"])}
    mounts = (
        cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"],
        container["volumeMounts"],
    )
    assert all(values["run_dir"].value.startswith(mount["mountPath"]) for [mount] in mounts)


# ── SLURM ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of one node; where there is none and none may be installed, the reason why."""
    script, folder = ROOT / "tests/slurm/start_slurm.sh", tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "SLURM_TEST_CPUS": "2"}
    if not os.environ.get("GCP_JAX_INSTALL_SLURM"):
        environment["SLURM_TEST_NO_INSTALL"] = "1"
    found = subprocess.run(
        ["bash", str(script), str(folder)], capture_output=True, text=True, env=environment
    )
    if found.returncode:
        pytest.skip(f"{found.stderr.strip().splitlines()[-1]}; GCP_JAX_INSTALL_SLURM=1 installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", found.stdout.rpartition("=")[2].strip())
        yield
        subprocess.run(["bash", str(script), "stop", str(folder)], check=True, capture_output=True)


def test_slurm_jobs_that_are_preempted_save_and_come_back(
    slurm, slow, tmp_path, undisturbed, monkeypatch
):
    monkeypatch.setenv("COUNTING_SECONDS", "0.4")  # SLURM takes seconds to preempt
    folder = tmp_path / "sweep"
    words = ("--on=slurm", "--slurm=partition=low", "--slurm=cpus_per_task=1")
    with started_launcher(
        slow, folder, *words, stderr=subprocess.DEVNULL
    ) as process:  # the jobs do not need it
        until(
            lambda: (
                working(folder)
                and any(len(done) > counting.SAVE for done in steps(folder).values())
            ),
            process,
        )
    subprocess.run(
        ["sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1"],
        check=True,
    )
    until(
        lambda: any(
            '"stopped"' in path.read_text() for path in folder.glob("runs/*/attempts.jsonl")
        )
    )
    again = subprocess.run(
        command(slow, folder, *words, "--json"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["finished"] == 4
    assert numbers(folder) == numbers(undisturbed)
    for done in steps(folder).values():
        check_resumed(done, SHORT["finetune.env_steps"])


# ── this machine, divided ───────────────────────────────────────────────────────────────────────────────────────────


def test_accelerators_are_divided_among_the_slots(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    shown = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in backends.split_machine(None, 2)]
    assert shown == ["2,3", "5,7"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in backends.split_machine(3, 1)] == [
        "2",
        "3",
        "5",
    ]
    with pytest.raises(
        ConfigError,
        match="--slots=3, but this machine has 4 accelerators, of which a run takes 2; at most 2",
    ):
        backends.split_machine(3, 2)


def test_tpu_chips_are_shown_with_their_bounds():
    assert backends._visible(["tpu:0", "tpu:1"]) == {
        "TPU_VISIBLE_CHIPS": "0,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def test_cores_are_divided_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert [slot.cores for slot in backends.split_machine(None, 1)] == [(0, 1), (2, 3)]
    with pytest.raises(ConfigError, match="5 cores; at most 5"):
        backends.split_machine(6, 1)


def test_no_attempt_raises(tmp_path):
    from gcp_jax.launch import worker

    (tmp_path / "file").write_text("")
    [planned] = spec.runs(Sweep(REACH))
    job = Job(planned.id, str(tmp_path / "file"), {}, "", work="helpers.counting:count")
    assert worker.work(job).how == "failed"
    assert isinstance(
        worker.work(job._replace(folder=str(tmp_path / "run"), work="nowhere:none")), JobResult
    )
