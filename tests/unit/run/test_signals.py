"""A signal asks a run to save and stop; a second one stops it at once."""

import signal
import threading

import pytest

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
