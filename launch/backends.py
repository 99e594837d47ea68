"""Where runs are done: processes of this machine, Ray, SLURM. Each queues attempts at an engine that exists; none schedules."""

from __future__ import annotations

import concurrent.futures
import glob
import json
import logging
import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from gcp_jax.atomic_files import write_json
from gcp_jax.config import ConfigError
from gcp_jax.launch import worker as working
from gcp_jax.launch.launcher import Backend, Future
from gcp_jax.launch.worker import Job, JobResult

NAMES = ("local", "ray", "slurm")


class WorkerSlot(NamedTuple):
    """A share of this machine: environment variables that show a process its accelerators, and the CPU cores it may use."""

    environment: Mapping[str, str]
    cores: tuple[int, ...]


def split_machine(count: int | None, devices: int) -> list[WorkerSlot]:
    """This machine divided by ``count`` runs at a time; by default as many as its accelerators allow with ``devices`` a run, or
    one for every two cores. Raises ConfigError where there are too few."""
    found, cores = accelerators(), sorted(os.sched_getaffinity(0))
    most = len(found) // devices if found else len(cores)
    count = count or (most if found else max(len(cores) // 2, 1))
    if count > most:
        what = (
            f"{len(found)} accelerators, of which a run takes {devices}"
            if found
            else f"{len(cores)} cores"
        )
        raise ConfigError(f"--slots={count}, but this machine has {what}; at most {most}.")
    share, each = (
        len(cores) // count,
        [found[i : i + devices] for i in range(0, len(found), devices)],
    )
    return [
        WorkerSlot(
            _visible(each[i]) if found else {},
            tuple(cores[i * share : (i + 1) * share]) or tuple(cores),
        )
        for i in range(count)
    ]


def accelerators() -> list[str]:
    """GPUs or TPU chips of this machine as their runtimes number them, "cuda:0" or "tpu:0"; without starting any runtime."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [f"cuda:{name}" for name in given.split(",") if name]
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    chips = len(glob.glob("/dev/accel[0-9]*")) or len(glob.glob("/dev/vfio/[0-9]*"))
    return [f"cuda:{i}" for i in range(gpus)] or [f"tpu:{i}" for i in range(chips)]


def _visible(devices: Sequence[str]) -> dict[str, str]:
    """The variables by which a process sees these devices only."""
    numbers = ",".join(name.partition(":")[2] for name in devices)
    if devices[0].startswith("cuda"):
        return {"CUDA_VISIBLE_DEVICES": numbers}
    bounds = f"1,{len(devices)},1"
    return {
        "TPU_VISIBLE_CHIPS": numbers,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


class Local:
    """Processes of this machine that stay: one for each slot, started anew when it dies. They end with the launcher."""

    def __init__(self, shares: Sequence[WorkerSlot], devices: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(
            len(shares), thread_name_prefix="slot"
        )
        self._slots = [_Process(share, devices) for share in shares]
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue jobs; each is done in the next process that is free."""
        return [self._threads.submit(self._do, job) for job in jobs]

    def _do(self, job: Job) -> JobResult:
        process = self._free.get()
        try:
            return process.do(job)
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Drop what is queued, let what runs save, and end the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for slot in self._slots:
            slot.ask_to_stop()
        self._threads.shutdown(wait=True)
        for slot in self._slots:
            slot.pool.shutdown()


class _Process:
    """One worker process, on its share of the machine."""

    def __init__(self, share: WorkerSlot, devices: int) -> None:
        self._arguments = (share.environment, devices, share.cores)
        self.pool = self._new()

    def _new(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), working.prepare, self._arguments
        )

    def do(self, job: Job) -> JobResult:
        """One attempt; raises BrokenProcessPool where the process died of it."""
        try:
            return self.pool.submit(_in_slot, job, os.getpid()).result()
        except BrokenProcessPool:
            self.pool.shutdown()
            self.pool = self._new()
            raise

    def ask_to_stop(self) -> None:
        """SIGTERM: a run saves first."""
        for process in list((self.pool._processes or {}).values()):
            process.terminate()


def _in_slot(job: Job, launcher: int) -> JobResult:
    """One attempt; a process whose launcher has died meanwhile ends, since nobody will give it more to do."""
    outcome = working.work(job)
    if os.getppid() != launcher:
        os._exit(0)
    return outcome


class Ray:
    """Ray Core tasks with the resources of one run, on a cluster by its address or on one started here."""

    def __init__(self, address: str, resources: Mapping[str, float], devices: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--on=ray needs Ray: pip install 'gcp-jax[ray]'.") from error
        _answers(address)
        seen = {
            name: os.environ[name]
            for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS")
            if name in os.environ
        }
        runtime = {
            "env_vars": {
                **seen,
                "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
            }
        }
        try:
            ray.init(
                address=address or None,
                runtime_env=runtime,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--address={address}: {working.told(error)}") from error
        self._ray, self._devices = ray, devices
        own = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        self._task = ray.remote(
            num_cpus=resources.get("CPU", 1),
            num_gpus=resources.get("GPU", 0),
            resources=own,
            max_retries=0,
        )(_on_ray)

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue jobs as tasks; a node's death is its task's exception."""
        return [self._task.remote(tuple(job), self._devices).future() for job in jobs]

    def close(self) -> None:
        """Leave the cluster; what still runs there is cancelled by it."""
        self._ray.shutdown()


def _on_ray(job: tuple[Any, ...], devices: int) -> JobResult:
    working.prepare({}, devices, ())
    return working.work(Job(*job))


def _answers(address: str) -> None:
    """Raises ConfigError where HOST:PORT does not take a connection, which Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"--address={address}: no Ray cluster answers there ({error}); start one with ray start --head, or leave --address out."
        ) from error


class Slurm:
    """Arrays of SLURM jobs by submitit. A job that SLURM wants off its node saves and asks to be queued again, launcher or no
    launcher; one launcher takes over the jobs of another from ``slurm/jobs.json``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], devices: int) -> None:
        try:
            from submitit.slurm.slurm import SlurmExecutor, SlurmJob
        except ImportError as error:
            raise ConfigError("--on=slurm needs submitit: pip install 'gcp-jax[slurm]'.") from error
        self._folder, self._devices, self._job = folder / "slurm", devices, SlurmJob
        try:
            self._executor = SlurmExecutor(self._folder)
            self._executor.update_parameters(**{**SLURM, **settings})
            self._queued()
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"--on=slurm: {working.told(error)}") from error
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._open: dict[str, tuple[Future, Any]] = {}
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue one array of the jobs that no launcher before this one has in SLURM's queue."""
        path = self._folder / "jobs.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        queued = self._queued()
        new = [job for job in jobs if known.get(job.folder) not in queued]
        made = (
            self._executor.map_array(
                _on_slurm,
                [tuple(job) for job in new],
                [self._devices] * len(new),
                [str(self._folder)] * len(new),
            )
            if new
            else []
        )
        known.update({job.folder: each.job_id for job, each in zip(new, made, strict=True)})
        write_json(path, known)
        return [self._followed(known[job.folder]) for job in jobs]

    def close(self) -> None:
        """Stop watching; the jobs stay in the queue."""
        self._closed.set()
        self._watcher.join()

    def _followed(self, name: str) -> Future:
        future: Future = concurrent.futures.Future()
        with self._lock:
            self._open[name] = future, self._job(self._folder, name)
        return future

    def _watch(self) -> None:
        missed: dict[str, int] = {}
        while not self._closed.wait(POLL):
            try:
                queued = self._queued()
            except (OSError, subprocess.SubprocessError):
                continue  # the controller is away: ask again
            with self._lock:
                gone = [name for name in self._open if name not in queued]
            for name in gone:
                missed[name] = missed.get(name, 0) + 1
                if missed[name] > 1:  # not between two tries either
                    with self._lock:
                        future, job = self._open.pop(name)
                    _settle(future, job, self._folder)

    @staticmethod
    def _queued() -> set[str]:
        """The ids of this user's jobs that SLURM still has something to do for."""
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
        return set(
            subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=60
            ).stdout.split()
        )


SLURM = {"job_name": "gcp-jax", "time": 24 * 60, "signal_delay_s": 300}
POLL = 2.0  # seconds between looks at the queue


def _settle(future: Future, job: Any, folder: Path) -> None:
    """What became of a job that has left the queue."""
    path = _outcome(folder, job.job_id)
    if path.exists():
        future.set_result(JobResult(**json.loads(path.read_text())))
    else:
        complaint = f"SLURM ended job {job.job_id} without a result; see {job.paths.stderr}"
        future.set_exception(RuntimeError(complaint))


def _outcome(folder: Path, name: str) -> Path:
    return folder / f"{name}_outcome.json"


def _on_slurm(job: tuple[Any, ...], devices: int, folder: str) -> None:
    """One attempt; told to leave (SIGTERM when preempted, SIGUSR2 before the time limit) it saves and is queued again."""
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    working.prepare({}, devices, ())
    outcome = working.work(Job(*job))
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    name = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    if outcome.how == "stopped":
        subprocess.run(["scontrol", "requeue", name], check=False)
        sys.exit(0)
    write_json(_outcome(Path(folder), name), outcome._asdict())


def make(
    name: str,
    *,
    folder: Path,
    slots: int | None,
    devices: int,
    address: str,
    resources: Mapping[str, float],
    slurm: Mapping[str, Any],
) -> Backend:
    """The backend called ``name``. Raises ConfigError for another."""
    if name == "local":
        return Local(split_machine(slots, devices), devices)
    if name == "ray":
        return Ray(address, resources, devices)
    if name == "slurm":
        return Slurm(folder, slurm, devices)
    raise ConfigError(f"--on={name}; allowed: {', '.join(NAMES)}.")
