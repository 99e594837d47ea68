"""Ctrl-C and SIGTERM: save first, then stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal asked this process to stop.

    Attributes:
      signum: the signal's number; 0 if there was none.
    """

    def __init__(self) -> None:
        self.signum = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record the first Ctrl-C or SIGTERM in the block; a second one raises KeyboardInterrupt.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: Any) -> None:
        if request.signum:
            raise KeyboardInterrupt
        request.signum = signum
        print(
            "stopping when this segment, evaluation or compilation has ended, and saving; a second "
            "signal ends at once, without saving …",
            file=sys.stderr,
        )

    previous = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
