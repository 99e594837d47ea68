"""What the commands ask of XLA on a CPU."""

import importlib.metadata
import io
import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.off_policy import small_flow
from hypothesis import example, given
from hypothesis import strategies as st

import gcp_jax
from gcp_jax.config_fields import ConfigError
from gcp_jax.experiments import runtime
from gcp_jax.launch.cli import main
from gcp_jax.learner import xla_options
from gcp_jax.run.saved_policy import save_policy


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.setenv(xla_options.OWN_FLAGS, "")
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


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="there is no such option")
def test_programs_that_learn_leave_out_the_package_s_own_flags_but_not_the_user_s(monkeypatch):
    name = "xla_cpu_use_fusion_emitters"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv(xla_options.OWN_FLAGS, raising=False)
    monkeypatch.setenv("NPROC", "4")
    runtime.prepare_cpu()
    assert f"--{name}=false" in os.environ["XLA_FLAGS"].split()
    assert xla_options.learning_options()[name] is True
    monkeypatch.delenv(xla_options.OWN_FLAGS)  # as if the user had set it
    assert name not in xla_options.learning_options()


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
@example("abc")
@example("-1")
@example("99999999999")
@example("²")
def test_any_number_of_threads_is_taken_or_refused_in_one_line(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        patch.setenv(xla_options.OWN_FLAGS, "")
        patch.setenv("NPROC", text)
        try:
            runtime.prepare_cpu()
        except ConfigError as error:
            assert "NPROC is" in str(error) and "\n" not in str(error)
            return
        assert runtime.MIN_THREADS <= int(os.environ["NPROC"]) <= 4096


OTHER = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
}


@pytest.fixture(params=OTHER)
def other_setting(request):
    """A setting that changes numbers or dtypes, as an environment variable would make it."""
    name = request.param
    jax.config.update(name, OTHER[name])
    yield name
    jax.config.update(name, runtime.NUMERICS[name])


def test_every_setting_that_numbers_depend_on_is_known():
    assert runtime.NUMERICS.keys() == OTHER.keys() and not runtime.changed_numerics()


def test_a_command_computes_with_its_own_settings_and_says_so(other_setting, capsys):
    assert runtime.changed_numerics() == {other_setting: OTHER[other_setting]}
    assert main.main(["algorithms", "qc"]) == 0
    assert not runtime.changed_numerics()
    errors = capsys.readouterr().err
    assert f"note: {other_setting.upper()}={OTHER[other_setting]} is not used" in errors


def test_within_a_users_process_the_settings_are_given_back(other_setting):
    with runtime.fixed_numerics():
        assert not runtime.changed_numerics()
    assert runtime.changed_numerics() == {other_setting: OTHER[other_setting]}


@pytest.mark.slow
def test_a_saved_policy_acts_alike_whatever_the_settings(other_setting, tmp_path):
    with runtime.fixed_numerics():
        small = small_flow()
        save_policy(tmp_path / "p", policy=small.policy, deployed=small.deployed, facts={})
        expected = gcp_jax.load_policy(tmp_path / "p")(np.asarray(small.obs))
    action = gcp_jax.load_policy(tmp_path / "p")(np.asarray(small.obs, np.float64))
    np.testing.assert_array_equal(action, expected)
    assert action.dtype == np.float32
    with pytest.raises(ConfigError, match=f"here is {other_setting}={OTHER[other_setting]}"):
        gcp_jax.make_env("reach")


def test_a_platform_that_is_not_there_is_one_line(monkeypatch, capsys):
    """JAX itself asserts for a known one and names an unknown one."""

    def no_devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", no_devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main.main(["train", "--config=experiments/configs/reach.py", "--run_dir=nowhere"]) == 2
    assert not os.path.exists("nowhere")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gcp-jax train: JAX has no device (JAX_PLATFORMS='cuda')")


@pytest.mark.process
@pytest.mark.parametrize("words", [["plan", "--config.env.name=reach"], ["check", "reach"]])
def test_a_missing_platform_is_not_taken_for_a_fault_of_the_task(words):
    """The first use of a device is inside a contract, which reports what the task's code raises."""
    done = subprocess.run(
        [sys.executable, "-m", "gcp_jax.launch.cli.main", *words],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"gcp-jax {words[0]}: JAX has no device (JAX_PLATFORMS='cuda')")


@pytest.mark.parametrize("words", [["--help"], ["algorithms"], ["envs"], ["train", "--help"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_is_printed_on(monkeypatch, words, encoding):
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main.main(words) == 0
    out.flush()
    assert len(out.buffer.getvalue()) > 500
