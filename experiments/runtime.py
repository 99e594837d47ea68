"""What a process sets for XLA and for the C library, before it uses its first device."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path

ARENAS = 2
M_ARENA_MAX = -8  # of malloc.h
MIN_THREADS = 4  # in a smaller pool, collectives and steps with many contacts deadlock


def prepare_cpu(devices: int = 1) -> None:
    """Split the CPU into devices for ``config.data_parallel`` and set XLA's options for CPUs.

    Accelerators are not affected, and what the user has set in XLA_FLAGS or MALLOC_ARENA_MAX stays.

    - XLA's fusion emitters are off: they recompute the frames of a long chain of joints for every
      body on it, and compiling takes twice as long with them. XLA from jax 0.11 on refuses the
      option, so it is not given there.
    - NPROC, the size of XLA's thread pool, is at least ``MIN_THREADS``.
    - glibc keeps few heaps.

    Args:
      devices: how many devices the CPU stands for.
    """
    flags = {}
    if devices > 1:
        flags["xla_force_host_platform_device_count"] = str(devices)
    if _jax_version() < (0, 11):
        flags["xla_cpu_use_fusion_emitters"] = "false"
    present = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in flags.items() if name not in present]
    os.environ["XLA_FLAGS"] = " ".join([present, *added]).strip()
    threads = os.environ.get("NPROC") or os.cpu_count() or 1
    os.environ["NPROC"] = str(max(MIN_THREADS, 2 * devices, int(threads)))
    if "MALLOC_ARENA_MAX" not in os.environ:
        _keep_few_arenas()


def _jax_version() -> tuple[int, int]:
    major, minor, *_ = importlib.metadata.version("jax").split(".")
    return int(major), int(minor)


def compilation_cache() -> None:
    """Keep compiled programs between processes.

    The folder is ``JAX_COMPILATION_CACHE_DIR`` if it is set, ``~/.cache/gcp-jax/xla`` otherwise.
    """
    import jax

    default = Path.home() / ".cache" / "gcp-jax" / "xla"
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    print(f"compilation cache: {folder}", file=sys.stderr)


def _keep_few_arenas() -> None:
    """Let glibc keep ``ARENAS`` heaps instead of one for every thread.

    The threads of every checkpoint would each leave a fragmented heap, and a run would grow with
    every checkpoint. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
