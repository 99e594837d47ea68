"""The launcher: hands runs to a backend, tries again what failed, and asks a plan what comes next. It schedules nothing itself."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gcp_jax.atomic_files import write_json
from gcp_jax.config import ConfigError, clone_config, resolve, to_dict
from gcp_jax.launch import worker as working
from gcp_jax.launch.spec import RunSpec, Sweep
from gcp_jax.launch.worker import Job, JobResult
from gcp_jax.run import training

Future = concurrent.futures.Future[JobResult]


class Backend(Protocol):
    """Where runs are done. submit queues one attempt; its Future gives the outcome, or the exception by which its worker died."""

    def submit(self, jobs: Sequence[Job]) -> list[Future]: ...

    def close(self) -> None: ...


class Scheduler(Protocol):
    """What to run. start: the first runs, with the environment steps at which each pauses (0: never); after: what follows when one
    has ended, its outcome told."""

    def start(self) -> list[tuple[RunSpec, int]]: ...

    def after(self, run: RunSpec, outcome: JobResult) -> list[tuple[RunSpec, int]]: ...


class Everything:
    """All runs of a sweep, to their ends."""

    def __init__(self, runs: Sequence[RunSpec]) -> None:
        self.runs = runs

    def start(self) -> list[tuple[RunSpec, int]]:
        return [(run, 0) for run in self.runs]

    def after(self, run: RunSpec, outcome: JobResult) -> list[tuple[RunSpec, int]]:
        return []


class LaunchSummary(NamedTuple):
    """How a launch ended: runs by their outcome, and the errors of those that failed."""

    finished: int
    skipped: int
    failed: dict[str, str]


def folder_of(sweep_folder: Path, run: str) -> Path:
    """Where a run lies."""
    return sweep_folder / "runs" / run


def finished(run: Path) -> bool:
    """Has this run, or clone, come to its end?"""
    return (run / "summary.json").exists()


def launch(
    sweep: Sweep,
    plan: Scheduler,
    folder: Path,
    backend: Backend,
    *,
    retries: int,
    told: Callable[[str], None] = print,
) -> LaunchSummary:
    """Do what is left of a sweep. Runs that share a clone wait for it; one that fails is tried ``retries`` more times; none stops
    the others. KeyboardInterrupt leaves everything as it is: launching again goes on."""
    book = _JobLedger(sweep, folder, backend, retries, told)
    book.add(plan.start())
    while book.pending:
        done, _ = concurrent.futures.wait(
            book.pending, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            for run, outcome in book.ended(future):
                book.add(plan.after(run, outcome))
        book.flush()
    return LaunchSummary(book.finished, book.skipped, book.failed)


class _JobLedger:
    """What is queued, waiting for a clone, tried how often, and how it ended."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        backend: Backend,
        retries: int,
        told: Callable[[str], None],
    ) -> None:
        self.sweep, self.folder, self.backend, self.retries, self.told = (
            sweep,
            folder,
            backend,
            retries,
            told,
        )
        self.pending: dict[Future, tuple[RunSpec | None, Job]] = {}
        self.finished = self.skipped = 0
        self.failed: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._ready: list[tuple[RunSpec | None, Job]] = []
        self._waiting: dict[str, list[tuple[RunSpec, Job]]] = {}  # by the folder of the clone

    def add(self, wanted: Iterable[tuple[RunSpec, int]]) -> None:
        """Queue runs that are not finished, and the clones they need first."""
        for run, until in wanted:
            if finished(folder_of(self.folder, run.id)):
                self.skipped += 1
                continue
            job = self._job(run, until)
            if not job.clone or finished(Path(job.clone)):
                self._ready.append((run, job))
                continue
            if job.clone not in self._waiting:
                self._ready.append((None, _clone_job(job)))
            self._waiting.setdefault(job.clone, []).append((run, job))
        self.flush()

    def flush(self) -> None:
        """Hand over what is ready, all of it at once: a backend may make one array of it."""
        ready, self._ready = self._ready, []
        if ready:
            futures = self.backend.submit([job for _, job in ready])
            self.pending.update(zip(futures, ready, strict=True))

    def ended(self, future: Future) -> list[tuple[RunSpec, JobResult]]:
        """Note how an attempt ended; the runs that are over by it, and how."""
        run, job = self.pending.pop(future)
        outcome = self._outcome(future, job)
        if outcome.how == "stopped":
            self.told(f"{job.id} was stopped and saved; it goes on when there is room")
            self._ready.append((run, job))
            return []
        if outcome.how in ("failed", "died"):
            tried = self._tries[job.id] = self._tries.get(job.id, 0) + 1
            self.told(
                f"{job.id} {outcome.how} (attempt {tried} of {self.retries + 1}): {outcome.error}"
            )
            if tried <= self.retries:
                self._ready.append((run, job))
                return []
        waiting = self._waiting.pop(job.folder, [])
        if run is not None:
            return [self._over(run, outcome)]
        if outcome.how == "finished":
            self._ready += waiting
            return []
        return [
            self._over(each, JobResult("failed", f"its clone {job.id}: {outcome.error}"))
            for each, _ in waiting
        ]

    def _over(self, run: RunSpec, outcome: JobResult) -> tuple[RunSpec, JobResult]:
        if outcome.how == "finished":
            self.finished += 1
        elif outcome.how != "paused":
            self.failed[run.id] = outcome.error
        return run, outcome

    def _outcome(self, future: Future, job: Job) -> JobResult:
        error = future.exception()
        if error is None:
            return future.result()
        outcome = JobResult("died", f"its worker died ({working.told(error)})")
        working.note(Path(job.folder), ended=time.time(), outcome=outcome.how, error=outcome.error)
        return outcome

    def _job(self, run: RunSpec, until: int) -> Job:
        clone = clone_of(run, self.sweep.work)
        return Job(
            id=run.id,
            folder=str(folder_of(self.folder, run.id)),
            config=to_dict(run.config),
            command=run.command,
            work=self.sweep.work,
            until=until,
            clone=str(self.folder / "clones" / clone) if clone else "",
        )


def clone_of(run: RunSpec, work: str = Job._field_defaults["work"]) -> str:
    """The name of the clone that a run starts from; "" where it brings a policy of its own, or is no training."""
    own = run.config.pretrain.artifact or work != Job._field_defaults["work"]
    return "" if own else training.config_hash(clone_config(run.config))


def _clone_job(job: Job) -> Job:
    config = clone_config(resolve(job.config))
    return Job(Path(job.clone).name, job.clone, to_dict(config), job.command, clones=True)


def describe(runs: Sequence[RunSpec], folder: Path, *, file: str, command: str) -> None:
    """``sweep.json``: every run of the sweep by its id, those of earlier launches included. Raises ConfigError where the folder's
    is of another version."""
    path = folder / "sweep.json"
    content: dict[str, Any] = {
        "format": FORMAT,
        "file": file,
        "commands": [command],
        "versions": training.package_versions(),
        "commit": training.git_commit(),
        "runs": {run.id: _about(run) for run in runs},
    }
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        there = read(folder)
        content["runs"] = {**there["runs"], **content["runs"]}
        content["commands"] = [*there["commands"], command]
    write_json(path, content)


def register(runs: Sequence[RunSpec], folder: Path) -> None:
    """Add runs that came up later, as a search's do, to ``sweep.json``."""
    there = read(folder)
    new = {run.id: _about(run) for run in runs if run.id not in there["runs"]}
    if new:
        write_json(folder / "sweep.json", {**there, "runs": {**there["runs"], **new}})


def _about(run: RunSpec) -> dict[str, Any]:
    return {"values": run.values, "command": run.command}


FORMAT = 1


def read(folder: Path) -> dict[str, Any]:
    """``sweep.json`` of a sweep's folder. Raises ConfigError where there is none, or one of another version."""
    path = folder / "sweep.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no sweep (there is no sweep.json); name the --run_dir of a gcp-jax sweep."
        )
    found: dict[str, Any] = json.loads(path.read_text())
    if found.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} holds a sweep of format {found.get('format')}, this version reads {FORMAT}; choose another --run_dir."
        )
    return found


def to_stderr(line: str) -> None:
    """How a launcher speaks."""
    print(line, file=sys.stderr, flush=True)
