"""The console that tables are printed on."""

from __future__ import annotations

import sys

from rich.console import Console

PLAIN_WIDTH = 160  # characters of a line if the stream is not a terminal


def make_console(*, stderr: bool = True, highlight: bool = True) -> Console:
    """A console on standard error, or standard output.

    Args:
      stderr: print to standard error.
      highlight: color numbers and strings by themselves.

    Returns:
      A console as wide as the terminal, or ``PLAIN_WIDTH`` if the stream is a file or a pipe. Text
      is printed as it is: brackets are no markup and ``:words:`` no emoji.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=highlight, markup=False, emoji=False)
