"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import struct
import tokenize
import zipfile
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
    scratch = path.with_suffix(".tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
