"""What a worker does with one run, on whichever machine: once, into the run's own folder, which says all there is to know.

attempts.jsonl   a row when an attempt begins (host, pid) and one when it ends (outcome, error)
alive            touched every few seconds while an attempt goes on
log.txt          what the run said
error.txt        the traceback of the last failure
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

BEAT = 10.0  # seconds between signs of life
PATIENCE = 600.0  # seconds to wait for another process to let go of a run's folder
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class Job(NamedTuple):
    """One attempt at a run, in plain values. until: environment steps at which it pauses, 0 for none; clone: the run folder whose
    clone it starts from, "" for its own; clones: it is that clone itself, and is not finetuned."""

    id: str
    folder: str
    config: dict[str, Any]
    command: str
    work: str = "gcp_jax.launch.worker:train"
    until: int = 0
    clone: str = ""
    clones: bool = False


class JobResult(NamedTuple):
    """How an attempt ended: "finished", "paused" (at ``until``), "stopped" (by a signal, after saving), "failed" or "died"."""

    how: str
    error: str = ""


def prepare(environment: Mapping[str, str], devices: int, cores: Collection[int] = ()) -> None:
    """Before a worker process does anything: its devices and cores (all, if none are named), the compilation cache, and to end with
    whoever started it."""
    os.environ.update(environment)
    if cores:
        os.sched_setaffinity(0, cores)
    with contextlib.suppress(
        OSError, AttributeError
    ):  # Linux only; elsewhere an orphan ends with its run
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    from gcp_jax.experiments import runtime
    from gcp_jax.launch.cli.main import compilation_cache

    runtime.prepare_cpu(devices)
    compilation_cache()


def work(job: Job) -> JobResult:
    """Do one attempt. It raises nothing: what went wrong is the outcome, and in the folder."""
    from gcp_jax.atomic_files import write_text
    from gcp_jax.run.training import Interrupted, Paused

    folder = Path(job.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder), _beating(folder), _logged(folder / "log.txt"):
            note(folder, began=time.time(), host=socket.gethostname(), pid=os.getpid())
            outcome = JobResult("finished")
            try:
                _entry(job.work)(job)
            except Paused:
                outcome = JobResult("paused")
            except Interrupted as stop:
                outcome = JobResult("stopped", str(stop))
            except Exception as error:
                outcome = JobResult("failed", told(error))
                print(traceback.format_exc(), file=sys.stderr)
                write_text(folder / "error.txt", traceback.format_exc())
            note(folder, ended=time.time(), outcome=outcome.how, error=outcome.error)
            return outcome
    except OSError as error:
        return JobResult("failed", told(error))


def train(job: Job) -> None:
    """A run as ``gcp-jax train`` does it: clone, finetune, evaluate; or only the clone. ``gcp-jax report RUN`` draws its page."""
    import jax

    from gcp_jax import config as configs
    from gcp_jax.atomic_files import write_json
    from gcp_jax.experiments import assemble
    from gcp_jax.run.training import Training

    config, folder = configs.resolve(job.config), Path(job.folder)
    if job.clone:
        _adopt(Path(job.clone), folder)
    training = Training(config, assemble.make_task(config), folder, job.command)
    try:
        if job.clones:
            training.pretrain()
            write_json(folder / "summary.json", {})
        else:
            training.run(until=job.until)
    finally:
        jax.clear_caches()


def told(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return (
        words
        if isinstance(error, (ValueError, RuntimeError)) and words
        else f"{type(error).__name__}: {words}"
    )


def note(folder: Path, **row: Any) -> None:
    """Append a row to the run's attempts; where the disk is full, nothing of it stays."""
    with open(folder / "attempts.jsonl", "ab", buffering=0) as file:
        before, line = file.seek(0, os.SEEK_END), json.dumps(row).encode() + b"\n"
        if file.write(line) < len(line):
            file.truncate(before)
            raise OSError(f"cannot write {file.name}: the disk is full")


def _entry(name: str) -> Callable[[Job], None]:
    module, _, function = name.partition(":")
    found: Callable[[Job], None] = getattr(importlib.import_module(module), function)
    return found


def _adopt(clone: Path, folder: Path) -> None:
    """Take over a finished clone as if the run had made it: it would have made the same. The policy comes last, whole."""
    own = folder / "policy" / "base"
    if own.exists():
        return
    for name in ("metrics.jsonl", "eval.jsonl"):
        shutil.copyfile(clone / name, folder / name)
    scratch = folder / "policy" / ".base"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(clone / "policy" / "base", scratch)
    os.replace(scratch, own)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other worker is at this run: one that has lost its launcher still saves before it ends."""
    from gcp_jax.run.training import RunError, run_folder_lock

    patient = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(run_folder_lock(folder, ".worker"))
                break
            except RunError:
                if time.monotonic() > patient:
                    raise OSError(
                        f"{folder} has been in use by another process for {PATIENCE:.0f} s"
                    ) from None
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def _beating(folder: Path) -> Iterator[None]:
    """Signs of life, while the body goes on."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):
                (folder / "alive").touch()
            if ended.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            (folder / "alive").unlink(missing_ok=True)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Everything the process says goes to a file, what compiled code says included."""
    kept = os.dup(1), os.dup(2)
    with open(path, "ab") as file:
        try:
            _flush()
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            _flush()
            for number, own in zip((1, 2), kept, strict=True):
                os.dup2(own, number)
                os.close(own)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
