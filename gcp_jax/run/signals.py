"""Ctrl-C and SIGTERM: save first, then stop; a second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FIRST = (
    "stopping when this segment, evaluation or compilation has ended, and saving; a second signal "
    "ends at once, without saving …"
)


class StopRequest:
    """Whether a signal asked this process to stop.

    Attributes:
      signum: the signal's number; 0 if there was none.
    """

    def __init__(self) -> None:
        self.signum = 0

    def record(self, signum: int) -> None:
        """Note the first signal and say what follows."""
        self.signum = signum
        print(FIRST, file=sys.stderr, flush=True)


class _Watch:
    """Whether a thread watches this process's signals, and for whom."""

    is_running = False
    request: StopRequest | None = None


_watch = _Watch()  # signals belong to the process


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record the first Ctrl-C or SIGTERM in the block.

    A second one raises KeyboardInterrupt, or ends the process within
    ``second_signal_ends_process``. Outside the main thread, where Python allows no handlers,
    signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: Any) -> None:
        if _watch.is_running:
            return
        if request.signum:
            raise KeyboardInterrupt
        request.record(signum)

    previous = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    _watch.request = request
    try:
        yield request
    finally:
        _watch.request = None
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def second_signal_ends_process() -> Iterator[None]:
    """Have a second signal in ``stop_requests`` end this process at once, with 128 + its number.

    A thread sees the signals as they arrive: Python's own handlers wait while XLA compiles, and
    what they raise is lost if it is raised inside a weak reference's callback. What was saved stays
    whole, as after SIGKILL.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_read_signals, args=(reader,), daemon=True)
    thread.start()
    _watch.is_running = True
    try:
        yield
    finally:
        _watch.is_running = False
        signal.set_wakeup_fd(previous)
        os.close(writer)  # ends the thread
        thread.join()
        os.close(reader)


def _read_signals(reader: int) -> None:
    while numbers := os.read(reader, 64):
        for signum in numbers:
            request = _watch.request
            if request is None or signum not in SIGNALS:
                continue
            if request.signum:
                message = f"ended by a second signal ({signal.Signals(signum).name})"
                print(f"gcp-jax: {message}; what was saved is kept.", file=sys.stderr, flush=True)
                os._exit(128 + signum)
            request.record(signum)
