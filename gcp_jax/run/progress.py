"""The progress of a run on standard error: steps done, time left, score, speed.

On a terminal it is a bar that keeps moving while the device computes or XLA compiles; in a log
file or in CI it is a plain line every few seconds. If the display fails, for example on a closed
pipe, it falls silent: it never stops a run.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gcp_jax.stats.eval_rows import before_after
from gcp_jax.stats.intervals import MISSING


class _Compilation(NamedTuple):
    """A compilation in progress."""

    what: str
    began: float


class Progress:
    """Shows the progress of one stage, as a context manager.

    Args:
      total: the end of the stage, in ``unit``.
      stage: its name.
      unit: "env steps", or "updates" in pretraining.
      start: where a resumed stage starts; the time left follows from the speed since then.
      score_name: "success" or "return".
      every: seconds between plain lines.
      stream: where to show it; None: standard error.

    Attributes:
      compile_seconds: what ``compiling`` timed; not counted in the speed.
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
        self._total = total
        self._stage = stage
        self._unit = unit
        self._start = start
        self._done = start
        self._score_name = score_name
        self._values: dict[str, Any] = {}
        self._compilation: _Compilation | None = None
        self._began = time.monotonic()
        console = _Console(file=stream or sys.stderr, markup=False, emoji=False)
        self._display: _Display
        if _is_terminal(console):
            self._display = _Bar(console, self._render)
        else:
            self._display = _Lines(console, self._line, every)

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
        training_episodes: int | None = None,
        env_steps_per_s: float | None = None,
        updates_per_s: float | None = None,
    ) -> None:
        """Set what is shown; a value that is None keeps its last value.

        Args:
          done: progress, in ``unit``.
          evaluated: the score of the last evaluation, a success rate in [0, 1] or a return.
          training: the score of recent training episodes.
          training_episodes: how many these are.
          env_steps_per_s: speed of the environments.
          updates_per_s: speed of the updates.
        """
        values = {
            "evaluated": evaluated,
            "training": training,
            "training_episodes": training_episodes,
            "env_steps_per_s": env_steps_per_s,
            "updates_per_s": updates_per_s,
        }
        self._done = done
        self._values |= {key: value for key, value in values.items() if value is not None}

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Time and announce a compilation: ``compiled the training segment in 14.2 s``."""
        began = time.monotonic()
        self._compilation = _Compilation(what, began)
        self._announce(f"compiling the {what} …")
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._compilation = None
            self.compile_seconds += seconds
            self._announce(f"compiled the {what} in {seconds:.1f} s")

    def _announce(self, message: str) -> None:
        with contextlib.suppress(Exception):
            self._display.announce(f"[{self._stage}] {message}")

    def _seconds_left(self, elapsed: float) -> float | None:
        """None while it is unknown."""
        gained = self._done - self._start
        if gained <= 0 or self._compilation:
            return None
        running = elapsed - self.compile_seconds
        return max(0, self._total - self._done) * running / gained

    def _count_text(self) -> str:
        percent = 100 * self._done / self._total
        return f"{percent:.0f} % · {self._done:,}/{self._total:,} {self._unit}"

    def _time_text(self) -> str:
        """``0:01:02 elapsed · 0:07:40 left``."""
        elapsed = time.monotonic() - self._began
        return f"{_duration(elapsed)} elapsed · {_duration(self._seconds_left(elapsed))} left"

    def _score_text(self) -> str:
        """What is being compiled, or scores and speeds.

        ``success 81.2 % (training 76.0 % of 412 episodes) · 52,310 env steps/s · 310 updates/s``
        """
        if self._compilation:
            seconds = time.monotonic() - self._compilation.began
            return f"compiling the {self._compilation.what} … {seconds:.1f} s"
        format_score = _rate if self._score_name == "success" else _number
        evaluated = format_score(self._values.get("evaluated"))
        training = format_score(self._values.get("training"))
        if "training_episodes" in self._values:
            training += f" of {self._values['training_episodes']:,} episodes"
        parts = [f"{self._score_name} {evaluated} (training {training})"]
        for unit, key in (("env steps/s", "env_steps_per_s"), ("updates/s", "updates_per_s")):
            if key in self._values:
                parts.append(f"{self._values[key]:,.0f} {unit}")
        return " · ".join(parts)

    def _line(self) -> str:
        texts = (self._count_text(), self._time_text(), self._score_text())
        return f"[{self._stage}] {' · '.join(texts)}"

    def _render(self) -> RenderableType:
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=self._total, completed=self._done)
        row.add_row(Text(self._stage, style="bold"), bar, self._count_text())
        lines = (self._time_text(), self._score_text())
        details = [Text(f"  {line}", style="cyan") for line in lines]
        return Group(row, *details)


def print_scores(eval_rows: Iterable[Mapping[str, Any]], stream: TextIO | None = None) -> None:
    """Print the score before and after finetuning with 95 % intervals, by seed and pooled.

    A terminal gets a table with lines, a file or a pipe aligned plain text.

    Args:
      eval_rows: the rows of an ``eval.jsonl``.
      stream: where to print it; None: standard output.
    """
    console = _Console(file=stream or sys.stdout, markup=False, emoji=False)
    rows = before_after(eval_rows)
    score_name = rows[0].score_name if rows else "success"
    change = "change, points [95 %]" if score_name == "success" else "change [95 %]"
    header = (score_name, "before [95 %]", "after [95 %]", change)
    cells = [header, *(row.cells() for row in rows)]
    if _is_terminal(console):
        console.print(_table_with_lines(cells))
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
        """Fall silent; rich would exit the process."""
        self.quiet = True


class _Bar:
    """A bar at the bottom of a terminal, redrawn four times a second by a thread."""

    def __init__(self, console: Console, render: Callable[[], RenderableType]) -> None:
        self._live = Live(
            console=console, get_renderable=_never_failing(render), refresh_per_second=4
        )

    def start(self) -> None:
        self._live.start()

    def announce(self, message: str) -> None:
        self._live.console.print(message, style="dim", markup=False, highlight=False)

    def stop(self) -> None:
        self._live.stop()


class _Lines:
    """Plain lines without control codes: one every ``every`` seconds, and one at the end."""

    def __init__(self, console: Console, line: Callable[[], str], every: float) -> None:
        self._file = console.file
        self._line = line
        self._every = every
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


def _never_failing(render: Callable[[], RenderableType]) -> Callable[[], RenderableType]:
    """``render``, but an empty text if it raises."""

    def rendered() -> RenderableType:
        with contextlib.suppress(Exception):
            return render()
        return ""

    return rendered


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    return str(timedelta(seconds=round(seconds)))


def _rate(value: float | None) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,.1f}"


def _table_with_lines(cells: list[tuple[str, str, str, str]]) -> Table:
    table = Table(*cells[0], header_style="bold")
    for line in cells[1:]:
        table.add_row(*line, style="bold" if line[0] == "pooled" else "")
    return table
