"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
)  # what damaged bytes make json, zipfile and numpy raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON, all of it or nothing. Raises OSError that names the file."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a file, all of it or nothing. Raises OSError that names it."""
    with atomic_replacement(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, all of it or nothing. Raises OSError that names it."""
    with atomic_replacement(path) as scratch:
        scratch.write_bytes(content)


@contextlib.contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` at the end. Raises OSError that names ``path``, which is left as it was."""
    scratch = path.with_suffix(".tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
