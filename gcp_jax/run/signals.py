"""Ctrl-C and SIGTERM: save first, then stop."""

from __future__ import annotations

import contextlib
import signal
import sys
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
    """Record the first Ctrl-C or SIGTERM in the block; a second one raises KeyboardInterrupt."""
    request = StopRequest()

    def handle(signum: int, frame: Any) -> None:
        if request.signum:
            raise KeyboardInterrupt
        request.signum = signum
        print("saving at the end of this segment …", file=sys.stderr)

    previous = {signum: signal.signal(signum, handle) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
