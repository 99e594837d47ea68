"""What a worker process does with one run, on any machine.

Every attempt is recorded in the run folder:

attempts.jsonl   a row when an attempt begins (host, pid) and one when it ends (outcome, error)
alive            touched every few seconds during an attempt
log.txt          standard output and standard error of all attempts
error.txt        the traceback of the last failure
"""

from __future__ import annotations

import contextlib
import ctypes
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

from gcp_jax.launch.spec import TRAIN

BEAT_SECONDS = 10.0  # between two touches of ``alive``
LOCK_TIMEOUT_SECONDS = 600.0  # to wait for another process to release a run folder
LOCK_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Job(NamedTuple):
    """One attempt at a run, in plain values."""

    id: str
    folder: str  # the run folder
    config: dict[str, Any]
    command: str  # that repeats the run alone
    entry_point: str = TRAIN  # "module:function", called with the job
    until: int = 0  # environment steps at which the run pauses; 0: it does not
    clone: str = ""  # run folder of the shared clone to start from; "": clone in the run itself
    clone_only: bool = False  # stop after cloning


class JobResult(NamedTuple):
    """How an attempt ended."""

    # "finished", "paused" (at ``until``), "stopped" (by a signal), "decayed" (all seeds are below
    # their base policy, and ``finetune.on_decay`` is "stop"), "failed" or "died"
    status: str
    error: str = ""


def prepare_process(
    environment: Mapping[str, str], devices: int, cores: Collection[int] = ()
) -> None:
    """Set up a worker process before it does anything else.

    Args:
      environment: variables to set, e.g. those that select accelerators.
      devices: virtual CPU devices of a run.
      cores: the CPU cores that the process may use; empty: all.
    """
    os.environ.update(environment)
    if cores:
        os.sched_setaffinity(0, cores)
    # End with the launcher. Linux only: elsewhere an orphan ends when its run does.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    from gcp_jax.experiments import runtime

    runtime.fix_numerics()
    runtime.prepare_cpu(devices)
    runtime.compilation_cache()


def run_job(job: Job) -> JobResult:
    """Make one attempt at a run. Raises nothing: errors are in the result and in the run folder."""
    folder = Path(job.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder), _heartbeat(folder), _output_to(folder / "log.txt"):
            log_attempt(folder, began=time.time(), host=socket.gethostname(), pid=os.getpid())
            result = _call_entry_point(job, folder)
            log_attempt(folder, ended=time.time(), outcome=result.status, error=result.error)
            return result
    except OSError as error:
        return JobResult("failed", error_line(error))


def _call_entry_point(job: Job, folder: Path) -> JobResult:
    from gcp_jax.atomic_files import write_text
    from gcp_jax.run.errors import Decayed, Interrupted, Paused

    try:
        load_entry_point(job.entry_point)(job)
    except Paused:
        return JobResult("paused")
    except Interrupted as stop:
        return JobResult("stopped", str(stop))
    except Decayed as stop:
        return JobResult("decayed", error_line(stop))
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        write_text(folder / "error.txt", traceback.format_exc())
        return JobResult("failed", error_line(error))
    return JobResult("finished")


def train(job: Job) -> None:
    """The default entry point: clone, finetune and evaluate as ``gcp-jax train`` does.

    No report is written; ``gcp-jax report RUN`` writes it.
    """
    import jax

    from gcp_jax.atomic_files import write_json
    from gcp_jax.experiments import run_config, run_inputs
    from gcp_jax.run.training import Training

    config = run_config.resolve(job.config)
    folder = Path(job.folder)
    if job.clone:
        _adopt_clone(Path(job.clone), folder)
    training = Training(config, run_inputs.task_of_run(config, folder), folder, job.command)
    try:
        if job.clone_only:
            training.pretrain()
            write_json(folder / "summary.json", {})
        else:
            training.run(pause_at=job.until)
    finally:
        jax.clear_caches()


def error_line(error: BaseException) -> str:
    """Return an error as one line."""
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, RuntimeError)) and message:
        return message
    return f"{type(error).__name__}: {message}"


def log_attempt(folder: Path, **row: Any) -> None:
    """Append a row to ``attempts.jsonl``.

    Raises:
      OSError: if the disk is full; nothing of the row is kept.
    """
    line = json.dumps(row).encode() + b"\n"
    with open(folder / "attempts.jsonl", "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(line) < len(line):
            file.truncate(end)
            raise OSError(f"cannot write {file.name}: the disk is full")


def load_entry_point(name: str) -> Callable[[Job], None]:
    """The function that "module:function" names.

    Raises:
      ConfigError: there is none, or its module raises an error.
    """
    from gcp_jax import user_code
    from gcp_jax.config import ConfigError

    module, _, function = name.partition(":")
    named = f"the sweep's entry_point={name!r}"
    try:
        loaded = getattr(user_code.import_module(module, named), function, None)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"{named} cannot be imported; it is 'module:function'.") from error
    if not callable(loaded):
        raise ConfigError(f"{named}: there is no function {function!r} in {module}.")
    entry_point: Callable[[Job], None] = loaded
    return entry_point


def _adopt_clone(clone: Path, folder: Path) -> None:
    """Copy a finished clone into a run folder, as if the run had made it itself.

    The policy is copied last and atomically: if it is there, the adoption is complete.
    """
    from gcp_jax.run import run_policies

    run_policies.set_damaged_aside(folder, run_policies.BASE)
    base = run_policies.policy_folder(folder, run_policies.BASE)
    if base.exists():
        return
    for name in ("metrics.jsonl", "eval.jsonl"):
        shutil.copyfile(clone / name, folder / name)
    scratch = folder / "policy" / ".base"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(clone / "policy" / "base", scratch)
    os.replace(scratch, base)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other worker uses the run folder: one that lost its launcher saves first."""
    from gcp_jax.run.errors import RunError
    from gcp_jax.run.folder import run_folder_lock

    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run_folder_lock(folder, ".worker"))
                break
            except RunError:
                if time.monotonic() > deadline:
                    raise OSError(
                        f"{folder} has been in use by another process for "
                        f"{LOCK_TIMEOUT_SECONDS:.0f} s"
                    ) from None
                time.sleep(LOCK_POLL_SECONDS)
        yield


@contextlib.contextmanager
def _heartbeat(folder: Path) -> Iterator[None]:
    """Touch ``alive`` every ``BEAT_SECONDS`` while the body runs, and remove it afterwards."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):
                (folder / "alive").touch()
            if ended.wait(BEAT_SECONDS):
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
def _output_to(path: Path) -> Iterator[None]:
    """Append the process's output to a file, at the level of file descriptors: that of compiled
    code is included."""
    saved = (os.dup(1), os.dup(2))
    with open(path, "ab") as file:
        try:
            _flush()
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            _flush()
            for number, original in zip((1, 2), saved, strict=True):
                os.dup2(original, number)
                os.close(original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
