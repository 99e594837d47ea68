"""Sweeps in processes: workers and launchers that die, full disks, Ray and SLURM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import counting
from helpers.sweeps import (
    RATES,
    REACH,
    SHORT,
    assert_resumed,
    counting_sweep,
    launch,
    results,
    steps,
)

from benchmarks.faults import kill_machine, last_attempt
from gcp_jax.config import ConfigError
from gcp_jax.launch import backends, grid
from gcp_jax.launch.cli import main, sweep
from gcp_jax.launch.cli.parse import parse
from gcp_jax.launch.launcher import LaunchSummary
from gcp_jax.run import metrics

ROOT = Path(__file__).parent.parent.parent
SLOW_SWEEP = f"""from gcp_jax.launch import Sweep, grid
def get_sweep():
    return Sweep(
        {REACH!r},
        (grid("algorithm.critic_lr", (1e-4, 3e-4, 1e-3, 3e-3)),),
        fields={SHORT!r},
        entry_point="helpers.counting:count",
    )
"""

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(counting_sweep(), folder).summary == LaunchSummary(4, 0, {})
    return folder


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """The file of a sweep whose runs take seconds."""
    monkeypatch.setenv("COUNTING_SECONDS", "0.1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    file = tmp_path / "slow.py"
    file.write_text(SLOW_SWEEP)
    return file


def command(file: Path, folder: Path, *words: str) -> list[str]:
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main"]
    return [*program, "sweep", str(file), f"--run_dir={folder}", *words]


@contextlib.contextmanager
def started_launcher(*words, **streams):
    """Start ``command`` in the background, and kill it at the end."""
    with subprocess.Popen(command(*words), cwd=ROOT, text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition, process=None, seconds=600.0):
    """Wait for ``condition()``, as long as ``process``, if given, lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.05)


def working_pids(folder: Path) -> list[int]:
    """The processes whose attempts have not ended, by the run folders."""
    newest = [last_attempt(path.parent) for path in folder.glob("runs/*/attempts.jsonl")]
    return [row["pid"] for row in newest if "pid" in row]


def past_a_checkpoint(folder: Path) -> bool:
    return any(len(done) > counting.SAVE for done in steps(folder).values())


def assert_all_resumed(folder: Path, undisturbed: Path) -> None:
    assert results(folder) == results(undisturbed)
    for done in steps(folder).values():
        assert_resumed(done, SHORT["finetune.env_steps"])


# Processes of this machine


def test_a_worker_that_dies_costs_one_attempt(tmp_path, undisturbed):
    local = backends.LocalBackend([backends.WorkerSlot({}, ())] * 2, 1)
    sweep = counting_sweep(RATES, grid("demonstrations.path", ("", "die once")))
    try:
        summary, lines = launch(sweep, tmp_path, local)
    finally:
        local.close()
    assert summary == LaunchSummary(8, 0, {})
    assert sum("died (attempt 1 of 2)" in line for line in lines) >= 4
    assert results(undisturbed).items() <= results(tmp_path).items()


def test_killed_launchers_and_workers_lose_and_repeat_nothing(slow, tmp_path, undisturbed):
    folder = tmp_path / "sweep"
    words = (slow, folder, "--max_parallel=2")
    with started_launcher(*words, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: past_a_checkpoint(folder), process)
        os.kill(working_pids(folder)[0], signal.SIGKILL)
        wait_until(lambda: len(results(folder)) >= 1, process)
    again = subprocess.run(command(*words, "--json"), capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout.splitlines()[-1])
    assert summary["finished"] == 4 and not summary["failed"]
    attempts = list(folder.glob("runs/*/attempts.jsonl"))
    pids = [row["pid"] for path in attempts for row in metrics.rows(path) if "pid" in row]
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    assert_all_resumed(folder, undisturbed)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(slow, tmp_path):
    folder = tmp_path / "sweep"
    limit = 'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 0 && exec "$@"'
    limited = ["bash", "-c", limit, "bash", *command(slow, folder, "--max_parallel=1")]
    ended = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(
        f"gcp-jax sweep: [Errno 27] cannot write {folder}/sweep.json: File too large"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]


# Ray


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


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_ray_finishes_every_run_when_a_node_is_killed(tmp_path, slow, undisturbed):
    folder = tmp_path / "sweep"
    with ray_cluster(2) as (cluster, nodes):
        words = (slow, folder, "--backend=ray", f"--address={cluster.address}", "--json")
        with started_launcher(*words, stdout=subprocess.PIPE) as process:
            wait_until(lambda: working_pids(folder) and any(steps(folder).values()), process)
            kill_machine(nodes, working_pids(folder)[0])
            out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["finished"] == 4
    attempts = [path.read_text() for path in folder.glob("runs/*/attempts.jsonl")]
    assert any(text.count("began") > 1 for text in attempts)
    assert_all_resumed(folder, undisturbed)


def test_a_dead_ray_address_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="no Ray cluster answers there") as error:
        backends.RayBackend("127.0.0.1:9", {}, 1)
    assert "\n" not in str(error.value)


def test_the_manifest_for_tpus_names_what_there_is():
    manifest = yaml.safe_load((ROOT / "launch/tpu.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    program, name, file, *words = manifest["spec"]["entrypoint"].split()
    assert program == "gcp-jax" and (ROOT / file).is_file()
    arguments = parse(name, main.load_command(name), [file, *words])
    assert arguments.positional == [file] and arguments.flags.backend in backends.NAMES
    asked = sweep.parse_resources(arguments.flags.resources)
    cluster = manifest["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    [worker] = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    limits = worker["resources"]["limits"]
    assert asked == {"TPU": float(limits["google.com/tpu"]), "CPU": float(limits["cpu"])}
    for container in (head, worker):
        [mount] = container["volumeMounts"]
        assert arguments.flags.run_dir.startswith(mount["mountPath"])


# SLURM


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of one node. Skips, with the reason, if there is none and none may be installed."""
    script = str(ROOT / "tests/slurm/start_slurm.sh")
    folder = str(tmp_path_factory.mktemp("slurm"))
    environment = {**os.environ, "SLURM_TEST_CPUS": "2"}
    if not os.environ.get("GCP_JAX_INSTALL_SLURM"):
        environment["SLURM_TEST_NO_INSTALL"] = "1"
    started = subprocess.run(
        ["bash", script, folder], capture_output=True, text=True, env=environment
    )
    if started.returncode:
        reason = started.stderr.strip().splitlines()[-1]
        pytest.skip(f"{reason}; GCP_JAX_INSTALL_SLURM=1 installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.rpartition("=")[2].strip())
        yield
        subprocess.run(["bash", script, "stop", folder], check=True, capture_output=True)


def preempt() -> None:
    """Queue a job of higher priority that needs the whole node."""
    words = ["sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null"]
    subprocess.run([*words, "--wrap=sleep 1"], check=True)


def was_stopped(folder: Path) -> bool:
    attempts = [path.read_text() for path in folder.glob("runs/*/attempts.jsonl")]
    return any('"stopped"' in text for text in attempts)


@pytest.mark.cluster
def test_slurm_jobs_that_are_preempted_save_and_come_back(
    slurm, slow, tmp_path, undisturbed, monkeypatch
):
    monkeypatch.setenv("COUNTING_SECONDS", "0.4")  # SLURM takes seconds to preempt
    folder = tmp_path / "sweep"
    words = ("--backend=slurm", "--slurm=partition=low", "--slurm=cpus_per_task=1")
    with started_launcher(slow, folder, *words, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: working_pids(folder) and past_a_checkpoint(folder), process)
    # The launcher has been killed; the jobs do not need it.
    preempt()
    wait_until(lambda: was_stopped(folder))
    again = subprocess.run(
        command(slow, folder, *words, "--json"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=500,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["finished"] == 4
    assert_all_resumed(folder, undisturbed)
