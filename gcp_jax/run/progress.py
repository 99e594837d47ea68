"""What a person watching a run sees, on standard error: how far, how long still, how well, how fast.

On a terminal a bar that keeps moving while the device computes or XLA compiles; in a log file or CI plain lines,
one every few seconds. A display that fails (a closed pipe, say) falls silent: it never stops a run.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gcp_jax.stats.statistics import MISSING, before_after


class Progress:
    """Progress of one stage, as a context manager.

    ``total`` counts ``unit`` ("env steps", or "updates" in pretraining); a resumed stage starts at ``start``, so that
    the time left is score_name by the speed of this process. ``score_name``: the task, by "success" or by "return".
    ``compile_seconds`` adds up what ``compiling`` timed, and is kept out of the speed. ``every`` is the time between plain lines in seconds; ``stream`` is standard error if None.
    """

    def __init__(
        self,
        total: int,
        stage: str,
        *,
        unit: str = "env steps",
        start: int = 0,
        score_name: str = "success",
        every: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        if total <= 0:
            raise ValueError(f"Progress: total is {total} {unit}; it must be positive")
        self.compile_seconds = 0.0
        self._total, self._stage, self._unit, self._start, self._done = (
            total,
            stage,
            unit,
            start,
            start,
        )
        self._judged = score_name
        self._values: dict[str, Any] = {}
        self._compiling: tuple[str, float] | None = None
        self._began = time.monotonic()
        console = _Console(file=stream or sys.stderr)
        self._display: _Display = (
            _Bar(console, self._bar)
            if _is_terminal(console)
            else _Lines(console, self._line, every)
        )

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        with contextlib.suppress(Exception):
            self._display.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(Exception):
            self._display.stop()

    def update(
        self,
        done: int,
        *,
        evaluated: float | None = None,
        training: float | None = None,
        env_steps_per_s: float | None = None,
        updates_per_s: float | None = None,
    ) -> None:
        """Tells how far the stage is, in ``unit``; a value not given keeps the last one.

        Success rates in [0, 1], or returns: ``evaluated`` at the latest evaluation, ``training`` of recent episodes.
        """
        given = {
            "evaluated": evaluated,
            "training": training,
            "env_steps_per_s": env_steps_per_s,
            "updates_per_s": updates_per_s,
        }
        self._done = done
        self._values |= {key: value for key, value in given.items() if value is not None}

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Times a compilation and names it: ``compiling the training segment … 14.2 s``."""
        began = time.monotonic()
        self._compiling = (what, began)
        self._announce(f"compiling the {what} …")
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._compiling = None
            self.compile_seconds += seconds
            self._announce(f"compiled the {what} in {seconds:.1f} s")

    def _announce(self, message: str) -> None:
        with contextlib.suppress(Exception):
            self._display.announce(f"[{self._stage}] {message}")

    def _seconds_left(self, elapsed: float) -> float | None:
        gained, running = self._done - self._start, elapsed - self.compile_seconds
        return (
            None
            if gained <= 0 or self._compiling
            else max(0, self._total - self._done) * running / gained
        )

    def _count(self) -> str:
        return (
            f"{100 * self._done / self._total:.0f} % · {self._done:,}/{self._total:,} {self._unit}"
        )

    def _times(self) -> str:
        """``0:01:02 elapsed · 0:07:40 left``"""
        elapsed = time.monotonic() - self._began
        return f"{_duration(elapsed)} elapsed · {_duration(self._seconds_left(elapsed))} left"

    def _numbers(self) -> str:
        """``success 81.2 % (training 76.0 %) · 52,310 env steps/s · 310 updates/s``, or what is being compiled."""
        if self._compiling:
            what, began = self._compiling
            return f"compiling the {what} … {time.monotonic() - began:.1f} s"
        told = _rate if self._judged == "success" else _number
        evaluated, training = (told(self._values.get(key)) for key in ("evaluated", "training"))
        speeds = {"env steps/s": "env_steps_per_s", "updates/s": "updates_per_s"}
        known = [
            f"{self._values[key]:,.0f} {unit}"
            for unit, key in speeds.items()
            if key in self._values
        ]
        return " · ".join([f"{self._judged} {evaluated} (training {training})", *known])

    def _line(self) -> str:
        return f"[{self._stage}] {self._count()} · {self._times()} · {self._numbers()}"

    def _bar(self) -> RenderableType:
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=self._total, completed=self._done)
        row.add_row(Text(self._stage, style="bold"), bar, self._count())
        details = (Text(f"  {line}", style="cyan") for line in (self._times(), self._numbers()))
        return Group(row, *details)


def table(eval_rows: Iterable[Mapping[str, Any]], stream: TextIO | None = None) -> None:
    """Prints success, or return, before and after with 95 % intervals, by seed and pooled, from the rows of an ``eval.jsonl``.

    To standard output unless told otherwise: a drawn table on a terminal, aligned plain text elsewhere.
    """
    console = _Console(file=stream or sys.stdout)
    rows = before_after(eval_rows)
    score_name = rows[0].score_name if rows else "success"
    change = "change, points [95 %]" if score_name == "success" else "change [95 %]"
    cells = [(score_name, "before [95 %]", "after [95 %]", change), *(row.texts() for row in rows)]
    if _is_terminal(console):
        console.print(_drawn(cells))
        return
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        console.file.write(padded.rstrip() + "\n")


class _Display(Protocol):
    def start(self) -> None: ...

    def announce(self, message: str) -> None: ...

    def stop(self) -> None: ...


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit the process."""
        self.quiet = True


class _Bar:
    """A bar at the bottom of a terminal, redrawn four times a second from a thread of its own."""

    def __init__(self, console: Console, render: Callable[[], RenderableType]) -> None:
        self._live = Live(console=console, get_renderable=_or_nothing(render), refresh_per_second=4)

    def start(self) -> None:
        self._live.start()

    def announce(self, message: str) -> None:
        self._live.console.print(message, style="dim", markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()


class _Lines:
    """Plain lines without control codes: one every ``every`` seconds from a thread, and a last one at the end."""

    def __init__(self, console: Console, line: Callable[[], str], every: float) -> None:
        self._file, self._line, self._every = console.file, line, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def announce(self, message: str) -> None:
        self._file.write(message + "\n")
        self._file.flush()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self.announce(self._line())

    def _tick(self) -> None:
        with contextlib.suppress(Exception):
            while not self._over.wait(self._every):
                self.announce(self._line())


def _is_terminal(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def _or_nothing(render: Callable[[], RenderableType]) -> Callable[[], RenderableType]:
    def rendered() -> RenderableType:
        with contextlib.suppress(Exception):
            return render()
        return ""

    return rendered


def _duration(seconds: float | None) -> str:
    return MISSING if seconds is None else str(timedelta(seconds=round(seconds)))


def _rate(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:,.1f}"


def _drawn(cells: list[tuple[str, str, str, str]]) -> Table:
    drawn = Table(*cells[0], header_style="bold")
    for line in cells[1:]:
        drawn.add_row(*line, style="bold" if line[0] == "pooled" else "")
    return drawn
