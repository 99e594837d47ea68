"""Runs as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from gcp_jax.config import ConfigError
from gcp_jax.launch import worker
from gcp_jax.launch.launcher import Future
from gcp_jax.launch.worker import Job, JobResult

FORWARDED = ("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS")  # environment variables
CONNECT_TIMEOUT_SECONDS = 5


class RayBackend:
    """One Ray task for each attempt, on a running cluster or on one started on this machine.

    Args:
      address: HOST:PORT of a cluster; "": the one Ray finds, or a new one on this machine.
      resources: of one run, by Ray's names: CPU, GPU, TPU.
      devices: accelerators of one run.

    Raises:
      ConfigError: if Ray is not installed, or no cluster answers at ``address``.
    """

    def __init__(self, address: str, resources: Mapping[str, float], devices: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--backend=ray needs Ray: pip install 'gcp-jax[ray]'.") from error
        _check_address(address)
        environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            ray.init(
                address=address or None,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--address={address}: {worker.error_line(error)}") from error
        self._ray = ray
        self._devices = devices
        custom = {name: n for name, n in resources.items() if name not in ("CPU", "GPU")}
        remote = ray.remote(
            num_cpus=resources.get("CPU", 1),
            num_gpus=resources.get("GPU", 0),
            resources=custom,
            max_retries=0,
        )
        self._task = remote(_run_on_ray)

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Queue jobs as tasks. If a node dies, its task's future holds the exception."""
        return [self._task.remote(tuple(job), self._devices).future() for job in jobs]

    def close(self) -> None:
        """Disconnect; Ray cancels the tasks that are still being done."""
        self._ray.shutdown()


def _run_on_ray(job: tuple[Any, ...], devices: int) -> JobResult:
    worker.prepare_process({}, devices)
    return worker.run_job(Job(*job))


def _check_address(address: str) -> None:
    """Raise ConfigError if HOST:PORT refuses a connection; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--address={address}: no Ray cluster answers there ({error}); "
            "start one with ray start --head, or leave --address out."
        ) from error
