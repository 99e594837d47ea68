"""The launcher: submits runs to a backend, retries those that fail, and asks a scheduler for more.

It places nothing itself; where and when a job runs is decided by the backend.
"""

from __future__ import annotations

import concurrent.futures
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gcp_jax.config import RunConfig, clone_config, to_dict
from gcp_jax.experiments import run_config, run_inputs
from gcp_jax.launch import worker
from gcp_jax.launch.expand import RunSpec
from gcp_jax.launch.spec import TRAIN, Sweep
from gcp_jax.launch.worker import Job, JobResult
from gcp_jax.run.code_digests import code_digests
from gcp_jax.run.folder import check_resumable as check_run_resumable
from gcp_jax.run.folder import config_hash
from gcp_jax.run.run_policies import missing_policies

Future = concurrent.futures.Future[JobResult]
Request = tuple[RunSpec, int]  # a run, and the environment steps at which it pauses (0: never)


class Backend(Protocol):
    """Where jobs run.

    ``submit`` queues one attempt at each job. A future holds the attempt's result, or the exception
    that ended its worker.
    """

    def submit(self, jobs: Sequence[Job]) -> list[Future]: ...

    def close(self) -> None: ...


class Scheduler(Protocol):
    """Which runs to do.

    ``start`` returns the first runs. ``after`` returns the runs to add when one has ended.
    """

    def start(self) -> list[Request]: ...

    def after(self, run: RunSpec, result: JobResult) -> list[Request]: ...


class LaunchSummary(NamedTuple):
    """How a launch ended."""

    finished: int
    skipped: int  # finished by an earlier launch
    failed: dict[str, str]  # the last error, by run id


def run_folder(sweep_folder: Path, run_id: str) -> Path:
    """Return the folder of a run."""
    return sweep_folder / "runs" / run_id


def is_finished(folder: Path) -> bool:
    """Return whether the run, or clone, in this folder has finished: its summary can be read."""
    try:
        return isinstance(json.loads((folder / "summary.json").read_text()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def check_resumable(runs: Iterable[RunSpec], folder: Path, entry_point: str = TRAIN) -> None:
    """Check that the trainings that a sweep's folder holds are those of these runs.

    Raises:
      RunError: one of them, or a clone, was begun with another configuration or other code.
    """
    if entry_point != TRAIN:
        return
    for run in runs:
        _check_run_resumable(run_folder(folder, run.id), run.config)
        if clone := clone_id(run):
            _check_run_resumable(folder / "clones" / clone, clone_config(run.config))


def _check_run_resumable(folder: Path, config: RunConfig) -> None:
    if (folder / "config.json").exists():
        inputs = run_inputs.input_digests(config, folder)
        check_run_resumable(folder, config, code_digests(config), inputs)


def clone_id(run: RunSpec, entry_point: str = TRAIN) -> str:
    """Return the id of the shared clone that a run starts from.

    "" if the run starts from a saved policy, or is not a training.
    """
    if run.config.pretrain.saved_policy or entry_point != TRAIN:
        return ""
    return config_hash(clone_config(run.config))


def launch(
    sweep: Sweep,
    scheduler: Scheduler,
    folder: Path,
    backend: Backend,
    *,
    retries: int,
    log: Callable[[str], None] = print,
) -> LaunchSummary:
    """Do what is left of a sweep.

    Runs that share a clone wait for it. A run that fails is retried ``retries`` times and does not
    stop the others. After a KeyboardInterrupt the next launch continues from the run folders.
    """
    ledger = _JobLedger(sweep, folder, backend, retries, log)
    ledger.add(scheduler.start())
    while ledger.pending:
        done, _ = concurrent.futures.wait(
            ledger.pending, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            for run, result in ledger.collect(future):
                ledger.add(scheduler.after(run, result))
        ledger.submit_ready()
    return LaunchSummary(ledger.finished, ledger.skipped, ledger.failed)


class _JobLedger:
    """Jobs that are ready, waiting for a clone, or pending; attempts made; and how runs ended.

    Jobs are paired with their run, or with None if they only make a clone.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        backend: Backend,
        retries: int,
        log: Callable[[str], None],
    ) -> None:
        self.sweep = sweep
        self.folder = folder
        self.backend = backend
        self.retries = retries
        self.log = log
        self.pending: dict[Future, tuple[RunSpec | None, Job]] = {}
        self.finished = 0
        self.skipped = 0
        self.failed: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._ready: list[tuple[RunSpec | None, Job]] = []
        self._waiting: dict[str, list[tuple[RunSpec, Job]]] = {}  # by the folder of the clone

    def add(self, requests: Iterable[Request]) -> None:
        """Queue runs that are not finished, after the clones they need."""
        for run, until in requests:
            check_resumable([run], self.folder, self.sweep.entry_point)
            if self._is_done(run):
                self.skipped += 1
                continue
            job = self._job(run, until)
            if not job.clone or _is_cloned(Path(job.clone)):
                self._ready.append((run, job))
                continue
            if job.clone not in self._waiting:
                self._waiting[job.clone] = []
                self._ready.append((None, _clone_job(job)))
            self._waiting[job.clone].append((run, job))
        self.submit_ready()

    def _is_done(self, run: RunSpec) -> bool:
        """Return whether a run has finished and its policies are on disk."""
        folder = run_folder(self.folder, run.id)
        if self.sweep.entry_point != TRAIN or not is_finished(folder):
            return is_finished(folder)
        return not missing_policies(folder, run.config.members)

    def submit_ready(self) -> None:
        """Submit all jobs that are ready in one call, so that a backend can make one array."""
        ready = self._ready
        self._ready = []
        if not ready:
            return
        futures = self.backend.submit([job for _, job in ready])
        self.pending.update(zip(futures, ready, strict=True))

    def collect(self, future: Future) -> list[tuple[RunSpec, JobResult]]:
        """Record how an attempt ended. Returns the runs that have ended because of it."""
        run, job = self.pending.pop(future)
        result = self._result(future, job)
        if result.status == "stopped":
            self.log(f"{job.id} was stopped and saved; it resumes when there is room")
            self._ready.append((run, job))
            return []
        if result.status in ("failed", "died") and self._retry(run, job, result):
            return []
        waiting = self._waiting.pop(job.folder, [])
        if run is not None:
            return [self._record(run, result)]
        if result.status == "finished":
            self._ready += waiting
            return []
        failure = JobResult("failed", f"its clone {job.id}: {result.error}")
        return [self._record(waiting_run, failure) for waiting_run, _ in waiting]

    def _retry(self, run: RunSpec | None, job: Job, result: JobResult) -> bool:
        """Log a failed attempt and queue another, if one is left."""
        attempts = self._attempts.get(job.id, 0) + 1
        self._attempts[job.id] = attempts
        total = self.retries + 1
        self.log(f"{job.id} {result.status} (attempt {attempts} of {total}): {result.error}")
        if attempts >= total:
            return False
        self._ready.append((run, job))
        return True

    def _record(self, run: RunSpec, result: JobResult) -> tuple[RunSpec, JobResult]:
        if result.status == "finished":
            self.finished += 1
        elif result.status != "paused":
            self.failed[run.id] = result.error
        return run, result

    def _result(self, future: Future, job: Job) -> JobResult:
        """Return the result of an attempt; if its worker died, record that in the run folder."""
        error = future.exception()
        if error is None:
            return future.result()
        result = JobResult("died", f"its worker died ({worker.error_line(error)})")
        worker.log_attempt(
            Path(job.folder), ended=time.time(), outcome=result.status, error=result.error
        )
        return result

    def _job(self, run: RunSpec, until: int) -> Job:
        clone = clone_id(run, self.sweep.entry_point)
        return Job(
            id=run.id,
            folder=str(run_folder(self.folder, run.id)),
            config=to_dict(run.config),
            command=run.command,
            entry_point=self.sweep.entry_point,
            until=until,
            clone=str(self.folder / "clones" / clone) if clone else "",
        )


def _is_cloned(folder: Path) -> bool:
    """Return whether a clone has finished and its policy is on disk."""
    return is_finished(folder) and not missing_policies(folder, members=())


def _clone_job(job: Job) -> Job:
    """Return the job that makes the clone of another."""
    return Job(
        id=Path(job.clone).name,
        folder=job.clone,
        config=to_dict(clone_config(run_config.resolve(job.config))),
        command=job.command,
        clone_only=True,
    )


def log_to_stderr(line: str) -> None:
    """Print a line of the launcher."""
    print(line, file=sys.stderr, flush=True)
