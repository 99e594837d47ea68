"""Bad input gives one line and exit code 2, writes nothing, and is listed in the documentation."""

import pytest

from benchmarks import bad_input
from gcp_jax.launch.cli import main

pytestmark = pytest.mark.slow

CASES = {case.what: case for case in bad_input.CASES}


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What every case says."""
    folder = tmp_path_factory.mktemp("bad") / "samples"
    bad_input.samples(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "compilation_cache", lambda: None)
        found = {what: bad_input.said(case, folder) for what, case in CASES.items()}
    changed = [
        path for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns != time
    ]
    assert changed == []
    return found


@pytest.mark.parametrize("what", CASES)
def test_it_is_one_line_and_exit_code_2_before_anything_is_written(messages, what):
    said = messages[what]
    assert said.code == 2 and not said.wrote
    assert said.lines[-1].startswith("gcp-jax")
    assert not [line for line in said.lines if "Traceback" in line or "compiling" in line]


def test_the_page_lists_what_is_printed(messages):
    assert bad_input.PAGE.read_text() == bad_input.table(
        [(CASES[what], said) for what, said in messages.items()]
    )
