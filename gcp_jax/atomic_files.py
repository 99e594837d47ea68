"""Writing files atomically: a file is there in full, or as it was before."""

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

# what json, zipfile and numpy raise when they read damaged files
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
)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically.

    Raises:
      OSError: names the file.
    """
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8.

    Raises:
      OSError: names the file.
    """
    with atomic_replacement(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically.

    Raises:
      OSError: names the file.
    """
    with atomic_replacement(path) as scratch:
        scratch.write_bytes(content)


@contextlib.contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """Yield a scratch file that replaces ``path`` when the context ends without an error.

    Raises:
      OSError: names ``path``, which is unchanged, as it is after any other error.
    """
    scratch = path.with_suffix(".tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
