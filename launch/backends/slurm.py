"""Runs as arrays of SLURM jobs, through submitit."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gcp_jax.atomic_files import write_json
from gcp_jax.config import ConfigError
from gcp_jax.json_files import DictOf, JsonError, Maybe, read_json
from gcp_jax.launch import worker
from gcp_jax.launch.launcher import Future
from gcp_jax.launch.worker import Job, JobResult

DEFAULTS = {"job_name": "gcp-jax", "time": 24 * 60, "signal_delay_s": 300}
POLL_SECONDS = 2.0  # between looks at the queue
ABSENT_POLLS = 2  # looks at the queue without a job after which it has ended: a job that is
# queued again may be missing from one of them
SQUEUE_TIMEOUT_SECONDS = 60


class SlurmBackend:
    """One element of a SLURM job array for each attempt.

    A job that SLURM preempts saves and queues itself again, with or without a launcher. A launcher
    takes over the jobs of an earlier one from ``slurm/jobs.json``.

    Args:
      folder: the sweep's folder.
      settings: options of sbatch, as submitit names them.
      devices: accelerators of one run.

    Raises:
      ConfigError: if submitit is not installed, or SLURM refuses.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], devices: int) -> None:
        try:
            from submitit.slurm.slurm import SlurmExecutor, SlurmJob
        except ImportError as error:
            message = "--backend=slurm needs submitit: pip install 'gcp-jax[slurm]'."
            raise ConfigError(message) from error
        self._folder = folder / "slurm"
        self._devices = devices
        self._job_class = SlurmJob
        try:
            self._executor = SlurmExecutor(self._folder)
            self._executor.update_parameters(**{**DEFAULTS, **settings})
            _queued_job_ids()
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"--backend=slurm: {worker.error_line(error)}") from error
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._open: dict[str, tuple[Future, Any]] = {}  # by SLURM's id
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue one array of the jobs that no earlier launcher has in SLURM's queue."""
        path = self._folder / "jobs.json"
        job_ids: dict[str, str] = {}
        if path.exists():
            remedy = "delete it: jobs that are still queued are then submitted again"
            job_ids = read_json(path, DictOf(str), error=ConfigError, remedy=remedy)
        queued = _queued_job_ids()
        new = [job for job in jobs if job_ids.get(job.folder) not in queued]
        if new:
            submitted = self._executor.map_array(
                _run_on_slurm,
                [tuple(job) for job in new],
                [self._devices] * len(new),
                [str(self._folder)] * len(new),
            )
            for job, slurm_job in zip(new, submitted, strict=True):
                job_ids[job.folder] = slurm_job.job_id
        write_json(path, job_ids)
        return [self._future_of(job_ids[job.folder]) for job in jobs]

    def close(self) -> None:
        """Stop watching; the jobs stay in the queue."""
        self._closed.set()
        self._watcher.join()

    def _future_of(self, job_id: str) -> Future:
        future: Future = concurrent.futures.Future()
        with self._lock:
            self._open[job_id] = (future, self._job_class(self._folder, job_id))
        return future

    def _watch(self) -> None:
        """Resolve the futures of jobs that have left the queue, until closed."""
        absent: dict[str, int] = {}
        while not self._closed.wait(POLL_SECONDS):
            try:
                queued = _queued_job_ids()
            except (OSError, subprocess.SubprocessError):
                continue  # the controller does not answer; try again
            with self._lock:
                gone = [job_id for job_id in self._open if job_id not in queued]
            for job_id in gone:
                absent[job_id] = absent.get(job_id, 0) + 1
                if absent[job_id] < ABSENT_POLLS:
                    continue
                with self._lock:
                    future, job = self._open.pop(job_id)
                _resolve(future, job, self._folder)


def _queued_job_ids() -> set[str]:
    """Return the ids of this user's jobs that SLURM has not finished with."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    listed = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=SQUEUE_TIMEOUT_SECONDS
    )
    return set(listed.stdout.split())


def _resolve(future: Future, job: Any, folder: Path) -> None:
    """Set the result of a job that has left the queue, or an exception if it left none."""
    path = _result_path(folder, job.job_id)
    if path.exists():
        try:
            content = read_json(path, {"status": str, "error": Maybe(str)})
            future.set_result(JobResult(content["status"], content.get("error") or ""))
        except JsonError as error:
            future.set_exception(error)
        return
    message = f"SLURM ended job {job.job_id} without a result; see {job.paths.stderr}"
    future.set_exception(RuntimeError(message))


def _result_path(folder: Path, job_id: str) -> Path:
    return folder / f"{job_id}_result.json"


def _run_on_slurm(job: tuple[Any, ...], devices: int, folder: str) -> None:
    """Make one attempt and write its result.

    SLURM signals a job to leave (SIGTERM when preempted, SIGUSR2 before the time limit). The run
    then saves, and the job is queued again.
    """
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    worker.prepare_process({}, devices)
    result = worker.run_job(Job(*job))
    job_id = _own_job_id()
    if result.status == "stopped":
        subprocess.run(["scontrol", "requeue", job_id], check=False)
        sys.exit(0)
    write_json(_result_path(Path(folder), job_id), result._asdict())


def _own_job_id() -> str:
    """Return the id of the SLURM job that this process is, as squeue prints it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ["SLURM_JOB_ID"]
