"""What the commands ask of XLA on a CPU."""

import importlib.metadata
import os

import pytest

from experiments import cpu
from gcp_jax import compiling


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    return os.environ


def test_devices_are_asked_for_beside_what_the_user_set(environ):
    cpu.prepare(4)
    flags = environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_dump_to=somewhere"
    assert {"--xla_force_host_platform_device_count=4", "--xla_cpu_use_fusion_emitters=false"} < {*flags}
    assert int(environ["NPROC"]) >= 8


def test_one_device_needs_no_flag_and_the_thread_pool_has_at_least_four(environ):
    cpu.prepare()
    assert "device_count" not in environ["XLA_FLAGS"] and int(environ["NPROC"]) >= 4


def test_a_users_own_choice_stands(environ, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=2")
    cpu.prepare(4)
    assert environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true --xla_force_host_platform_device_count=2"


def test_a_newer_xla_is_not_given_the_option_that_it_refuses(environ, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.11.0")
    cpu.prepare()
    assert environ["XLA_FLAGS"] == "--xla_dump_to=somewhere"


def test_a_program_s_own_options_leave_to_xla_flags_what_they_set(monkeypatch):
    assert compiling.physics() == {}  # conftest sets the level
    assert "xla_backend_optimization_level" not in compiling.learning()
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiling.physics() == {"xla_backend_optimization_level": 1}
    assert compiling.physics().items() < compiling.learning().items()
