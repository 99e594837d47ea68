"""What a process sets for JAX, XLA and the C library, before it uses its first device."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gcp_jax.config_fields import Bounds, ConfigError

ARENAS = 2
M_ARENA_MAX = -8  # of malloc.h
MIN_THREADS = 4  # in a smaller pool, collectives and steps with many contacts deadlock
THREADS = Bounds(1, 4096)  # of NPROC
NUMERICS: dict[str, Any] = {  # settings of JAX that the numbers and the dtypes of a run depend on
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}


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

    Raises:
      ConfigError: NPROC is no number of threads.
    """
    from gcp_jax.learner.xla_options import OWN_FLAGS

    flags = {}
    if devices > 1:
        flags["xla_force_host_platform_device_count"] = str(devices)
    if _jax_version() < (0, 11):
        flags["xla_cpu_use_fusion_emitters"] = "false"
    present = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in flags.items() if name not in present]
    os.environ["XLA_FLAGS"] = " ".join([present, *added]).strip()
    os.environ[OWN_FLAGS] = " ".join([os.environ.get(OWN_FLAGS, ""), *added]).strip()
    os.environ["NPROC"] = str(max(MIN_THREADS, 2 * devices, _threads()))
    if "MALLOC_ARENA_MAX" not in os.environ:
        _keep_few_arenas()


def _threads() -> int:
    """NPROC, or the number of CPU cores."""
    text = os.environ.get("NPROC")
    if not text:
        return os.cpu_count() or 1
    if not text.isdecimal() or int(text) not in THREADS:
        raise ConfigError(
            f"the environment variable NPROC is {text!r}; it must be a number of threads "
            f"{THREADS}, or unset."
        )
    return int(text)


def changed_numerics() -> dict[str, Any]:
    """The settings in ``NUMERICS`` that have another value now: {name: that value}."""
    import jax

    found = {name: getattr(jax.config, name) for name in NUMERICS}
    plain = {name: getattr(value, "value", value) for name, value in found.items()}
    return {name: value for name, value in plain.items() if value != NUMERICS[name]}


def fix_numerics() -> None:
    """Give the settings in ``NUMERICS`` these values, for the rest of the process; print changes.

    A run then has the same numbers, and loads the same policies, whatever the user's environment
    variables say.
    """
    import jax

    for name, value in changed_numerics().items():
        print(
            f"note: {name.upper()}={value} is not used: a run computes with {NUMERICS[name]}",
            file=sys.stderr,
        )
        jax.config.update(name, NUMERICS[name])


@contextlib.contextmanager
def fixed_numerics() -> Iterator[None]:
    """Have the settings in ``NUMERICS`` at these values within a block, in a user's own process."""
    import jax

    before = changed_numerics()
    try:
        for name in before:
            jax.config.update(name, NUMERICS[name])
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def missing_devices() -> str:
    """Why JAX has no device, in one line; "" if it has."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it is not available here"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX has no device (JAX_PLATFORMS={platforms!r}): {reason}; unset JAX_PLATFORMS, or "
            "install JAX for that platform."
        )
    return ""


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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    print(f"compilation cache: {folder}", file=sys.stderr)


def _keep_few_arenas() -> None:
    """Let glibc keep ``ARENAS`` heaps instead of one for every thread.

    The threads of every checkpoint would each leave a fragmented heap, and a run would grow with
    every checkpoint. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
