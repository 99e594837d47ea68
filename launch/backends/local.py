"""Runs in processes of this machine."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import queue
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from gcp_jax.launch import worker
from gcp_jax.launch.backends.slots import WorkerSlot
from gcp_jax.launch.launcher import Future
from gcp_jax.launch.worker import Job, JobResult


class LocalBackend:
    """One process for each slot, restarted if it dies. The processes end with the launcher."""

    def __init__(self, slots: Sequence[WorkerSlot], devices: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(len(slots), thread_name_prefix="slot")
        self._processes = [_SlotProcess(slot, devices) for slot in slots]
        self._free: queue.SimpleQueue[_SlotProcess] = queue.SimpleQueue()
        for process in self._processes:
            self._free.put(process)

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue jobs; each is done by the next process that is free."""
        return [self._threads.submit(self._run, job) for job in jobs]

    def _run(self, job: Job) -> JobResult:
        process = self._free.get()
        try:
            return process.run(job)
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Drop queued jobs, let the jobs that are being done save, and end the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.terminate()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.shutdown()


class _SlotProcess:
    """One worker process on its share of the machine; the first job starts it."""

    def __init__(self, slot: WorkerSlot, devices: int) -> None:
        self._arguments = (slot.environment, devices, slot.cores)
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=worker.prepare_process,
            initargs=self._arguments,
        )

    def run(self, job: Job) -> JobResult:
        """Make one attempt. Raises BrokenProcessPool if the process died during it."""
        if self._pool is None:
            self._pool = self._start()
        try:
            return self._pool.submit(_run_unless_orphaned, job, os.getpid()).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = None
            raise

    def terminate(self) -> None:
        """Send SIGTERM: a run saves first."""
        processes = self._pool._processes if self._pool else None
        for process in list((processes or {}).values()):
            process.terminate()

    def shutdown(self) -> None:
        """End the process when its job is done."""
        if self._pool:
            self._pool.shutdown()


def _run_unless_orphaned(job: Job, launcher_pid: int) -> JobResult:
    """Make one attempt, and end the process if the launcher has died meanwhile."""
    result = worker.run_job(job)
    if os.getppid() != launcher_pid:
        os._exit(0)
    return result
