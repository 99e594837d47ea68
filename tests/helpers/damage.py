"""Damage to files, as disks do it."""

from pathlib import Path


def largest(folder: Path) -> Path:
    """The largest file below ``folder``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut off the last hundred bytes of a file."""
    path.write_bytes(path.read_bytes()[:-100])
