"""What a process asks of XLA on CPUs, before its first device is asked for, and of the C library's memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os

ARENAS = 2
M_ARENA_MAX = -8  # of malloc.h


def prepare_cpu(count: int = 1) -> None:
    """Let a CPU stand for ``count`` devices, so that config.data_parallel splits a run over cores; accelerators are not affected.
    Memory that was freed is kept together.

    Fusion emitters are switched off: they compute the frames of a long chain of joints anew for every body that hangs on it
    (0.7 s a step for a UR5e), and without them a program compiles in half the time; peg_insert steps 15 % slower. XLA of jax 0.11
    no longer knows that option, and refuses what it does not know. NPROC sizes XLA's thread pool: programs that step many
    contacts, and collectives of virtual devices, deadlock in one smaller than 4.
    """
    count = count if isinstance(count, int) else 1
    flags = {"xla_force_host_platform_device_count": str(count)} if count > 1 else {}
    if tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2]) < (0, 11):
        flags["xla_cpu_use_fusion_emitters"] = "false"
    given = os.environ.get("XLA_FLAGS", "")
    added = (f"--{name}={value}" for name, value in flags.items() if name not in given)
    os.environ["XLA_FLAGS"] = " ".join((given, *added)).strip()
    threads = os.environ.get("NPROC") or os.cpu_count() or 1
    os.environ["NPROC"] = str(max(4, 2 * count, int(threads)))
    if "MALLOC_ARENA_MAX" not in os.environ:
        _few_arenas()


def _few_arenas() -> None:
    """Let glibc keep ``ARENAS`` heaps instead of one for every thread that comes and goes: each checkpoint's threads leave their own
    in pieces, and a run grows by megabytes with every checkpoint. Other C libraries are left as they are."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
