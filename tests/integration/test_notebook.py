"""The notebook and the example run as a reader would run them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs/notebooks/quickstart.ipynb"
EXAMPLE = ROOT / "examples/load_policy.py"

# The kernel and its sockets warn on their own account.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_notebook_is_saved_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.process
def test_the_notebook_runs_and_its_policy_plays_in_the_example(tmp_path, monkeypatch):
    run_dir = tmp_path / "reach"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    temporary = 'Path(tempfile.mkdtemp()) / "reach"'
    [training] = [cell for cell in notebook.cells if temporary in cell.source]
    training.source = training.source.replace(temporary, f"Path({str(run_dir)!r})")
    for long, short in (("16_384", "6_144"), ("4_096", "2_048")):  # steps: all, and every
        assert long in training.source
        training.source = training.source.replace(long, short)
    monkeypatch.setenv("MPLBACKEND", "agg")
    resources = {"metadata": {"path": str(ROOT)}}
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources=resources
    )
    client.execute()
    texts = [out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("success:" in text for text in texts)
    spec = importlib.util.spec_from_file_location("load_policy", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    policy = str(run_dir / "policy" / "seed_0")
    assert any(example.play(policy, seed) for seed in range(10))
