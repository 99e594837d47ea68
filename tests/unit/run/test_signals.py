"""A signal asks a run to save and stop; a second one stops it at once."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from gcp_jax.run import signals
from gcp_jax.run.signals import stop_requests


def test_the_first_signal_is_recorded_and_the_second_raises(capsys):
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as request:
        assert request.signum == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        assert capsys.readouterr().err == (
            "stopping when this segment, evaluation or compilation has ended, and saving; a second "
            "signal ends at once, without saving …\n"
        )
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone():
    """As in notebook widgets, in Optuna with ``n_jobs`` and in servers."""
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def body():
        with stop_requests() as request:
            seen.append(request.signum)
            seen.extend(signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [0, *before]


COMMAND = """
import ctypes, sys, weakref
from gcp_jax.run.signals import second_signal_ends_process, stop_requests

def compile():  # C++ that Python's handlers cannot interrupt; it releases the GIL
    while True:
        ctypes.CDLL(None).usleep(10**9)

class Traced:
    pass

def trace():  # what a handler raises inside a callback of a weak reference is lost
    def forget(reference):
        sum(range(10**4))
    while True:
        traced = Traced()
        reference = weakref.ref(traced, forget)
        del traced

with second_signal_ends_process(), stop_requests() as request:
    print("began", flush=True)
    {work}()
"""


@pytest.mark.process
@pytest.mark.parametrize("work", ["compile", "trace"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_command_at_once(work, signum):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "began\n"
    process.send_signal(signum)
    assert process.stderr.readline() == f"{signals.FIRST}\n"
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    name = signal.Signals(signum).name
    assert errors == f"gcp-jax: ended by a second signal ({name}); what was saved is kept.\n"


def test_a_watched_process_notes_the_first_signal_and_is_as_before_afterwards(capsys):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = (signal.default_int_handler, signal.set_wakeup_fd(-1))
    with signals.second_signal_ends_process():
        with signals.stop_requests() as request:
            signal.raise_signal(signal.SIGTERM)
            deadline = time.monotonic() + 60
            while not request.signum and time.monotonic() < deadline:
                time.sleep(0.01)
        assert request.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):  # outside of a run
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == f"{signals.FIRST}\n"
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before
    signal.signal(signal.SIGINT, previous)
