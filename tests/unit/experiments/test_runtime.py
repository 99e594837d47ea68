"""What the commands ask of XLA on a CPU."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import pytest

from gcp_jax.experiments import runtime
from gcp_jax.learner import xla_options


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    return os.environ


def test_devices_are_asked_for_beside_what_the_user_set(environ):
    runtime.prepare_cpu(4)
    flags = environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_dump_to=somewhere"
    assert {"--xla_force_host_platform_device_count=4", "--xla_cpu_use_fusion_emitters=false"} < {
        *flags
    }
    assert int(environ["NPROC"]) >= 8


def test_one_device_needs_no_flag_and_the_thread_pool_has_at_least_four(environ):
    runtime.prepare_cpu()
    assert "device_count" not in environ["XLA_FLAGS"] and int(environ["NPROC"]) >= 4


def test_a_users_own_choice_stands(environ, monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=2"
    )
    runtime.prepare_cpu(4)
    assert (
        environ["XLA_FLAGS"]
        == "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=2"
    )


def test_a_newer_xla_is_not_given_the_option_that_it_refuses(environ, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.11.0")
    runtime.prepare_cpu()
    assert environ["XLA_FLAGS"] == "--xla_dump_to=somewhere"


def heaps(*settings: str) -> int:
    """How many heaps of glibc 16 threads at once made."""
    program = """
import ctypes, re, threading
from gcp_jax.experiments import runtime
runtime.prepare_cpu()
held, barrier = [], threading.Barrier(16)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    held.append([libc.malloc(1000) for _ in range(1000)])
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""
    env = {**os.environ, **dict(each.split("=") for each in settings)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
def test_freed_memory_is_kept_in_few_heaps_unless_the_user_says_otherwise():
    assert heaps() <= runtime.ARENAS < 4 <= heaps("MALLOC_ARENA_MAX=8")


def test_a_program_s_own_options_leave_to_xla_flags_what_they_set(monkeypatch):
    assert xla_options.physics_options() == {}  # conftest sets the level
    assert "xla_backend_optimization_level" not in xla_options.learning_options()
    monkeypatch.setenv("XLA_FLAGS", "")
    assert xla_options.physics_options() == {"xla_backend_optimization_level": 1}
    assert xla_options.physics_options().items() < xla_options.learning_options().items()
