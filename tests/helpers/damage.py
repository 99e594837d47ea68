"""What happens to files on disks."""

from pathlib import Path


def largest(folder: Path) -> Path:
    """The largest file below ``folder``."""
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_a_bit(path: Path) -> None:
    """In its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Its last hundred bytes are gone."""
    path.write_bytes(path.read_bytes()[:-100])
