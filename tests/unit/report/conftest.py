"""The two benchmarks that several test files look at, reported once."""

import pytest
from helpers.benchmark_folders import partial_benchmark, whole_benchmark

from gcp_jax.report import benchmark_page, plots


@pytest.fixture
def no_png(monkeypatch):
    """PNG files are not rendered, for tests that look at the page alone."""
    monkeypatch.setattr(plots, "png_bytes", lambda figure: b"\x89PNG")


@pytest.fixture(scope="session")
def partial(tmp_path_factory):
    """The page of a benchmark with four runs finished, one failed and one running."""
    return benchmark_page.write(partial_benchmark(tmp_path_factory.mktemp("partial") / "bench"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The page of a finished benchmark, written to another folder.

    Its PNG files are not rendered, which takes longest: those of ``partial`` are real.
    """
    folder = whole_benchmark(tmp_path_factory.mktemp("whole") / "bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png_bytes", lambda figure: b"\x89PNG")
        return benchmark_page.write(folder, folder.parent / "out")
