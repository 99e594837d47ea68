"""A signal asks a run to save and stop; a second one stops it at once."""

import signal

import pytest

from gcp_jax.run.signals import stop_requests


def test_the_first_signal_is_recorded_and_the_second_raises(capsys):
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as request:
        assert request.signum == 0
        signal.raise_signal(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        assert capsys.readouterr().err == "saving at the end of this segment …\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
