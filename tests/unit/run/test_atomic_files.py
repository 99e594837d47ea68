"""Files are there whole or not at all, and an error names them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gcp_jax import atomic_files

ROOT = Path(__file__).parents[3]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "table.csv"
    atomic_files.write_text(path, "old")
    with atomic_files.atomic_replacement(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path):
    path = tmp_path / "curves.png"
    atomic_files.write_bytes(path, b"old")
    with (
        pytest.raises(OSError, match=f"cannot write {path}: No space left on device"),
        atomic_files.atomic_replacement(path) as scratch,
    ):
        scratch.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.process
def test_a_report_on_a_full_disk_names_the_file_that_it_could_not_write(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"format": 3, "config": {"env": {"name": "reach"}, "algorithm": {"name": "ogpo"}}}'
    )
    program = [sys.executable, "-m", "gcp_jax.launch.cli.main", "report", str(tmp_path)]
    limited = [
        "bash",
        "-c",
        'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 1 && exec "$@"',
        "bash",
        *program,
    ]
    found = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 2
    expected = (
        f"gcp-jax report: [Errno 27] cannot write {tmp_path}/report/curves.png: File too large"
    )
    assert found.stderr.splitlines()[-1] == expected
