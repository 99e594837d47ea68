"""The pages as a browser lays them out on a desk and on a phone.

Screenshots are kept in ``build/screenshots``, or in the folder that GCP_JAX_SCREENSHOTS names.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.benchmark_folders import benchmark_of_clones, partial_benchmark, whole_benchmark
from helpers.run_folders import finished, stopped, with_demonstrations
from helpers.sweeps import RATES, counting_sweep, launch

from gcp_jax.launch import grid, sweep_page
from gcp_jax.report import benchmark_page, run_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1200, 390)  # a desk and a phone
NARROWEST_WINDOW = 500  # of a browser: a phone's page is shown in a frame
ROOT = Path(__file__).parents[3]

# The page in a frame of a phone's width, and what of it does not fit.
FRAME = """<!doctype html><body style="margin:0">
<iframe src="{address}" width="{width}" height="{height}" style="border:0;display:block"></iframe>
<pre></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument;
  const cut = [];
  for (const element of page.querySelectorAll("body *")) {{
    const box = element.getBoundingClientRect();
    if (box.right > {width} + 1 && !element.closest("pre"))
      cut.push(element.outerHTML.slice(0, 90));
    if (element.matches(".scroll") && element.scrollWidth > element.clientWidth + 1)
      cut.push("a table that scrolls: " + element.textContent.trim().slice(0, 60));
  }}
  const sizes = [...page.querySelectorAll("figure svg text")].map(
    (text) => text.getBoundingClientRect().height);
  document.querySelector("pre").textContent = JSON.stringify({{
    cut, width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    smallest: Math.min(...sizes.filter((size) => size > 0)),
    columns: Math.max(...[...page.querySelectorAll(".figures")].map((figures) => new Set(
      [...figures.children].map((figure) => figure.getBoundingClientRect().left)).size)),
  }});
}};
</script></body>"""


class Layout(NamedTuple):
    """How a browser laid a page out."""

    cut: list[str]  # what reaches beyond the window, or has to be scrolled
    width: int
    height: int
    smallest: float  # height of the smallest text in a figure, pixels
    columns: int  # of figures


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Run a browser on a page: ``browser(flags, page, width, height)`` is what it printed."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    folder = tmp_path_factory.mktemp("browser")

    def run(flags, page, width, height):
        frame = folder / "frame.html"
        frame.write_text(FRAME.format(address=page.as_uri(), width=width, height=height))
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            "--virtual-time-budget=4000",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={max(width, NARROWEST_WINDOW)},{height}",
            *flags,
            frame.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of every kind, by name."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gcp_jax.report.plots.png_bytes", lambda figure: b"\x89PNG")
        runs = [
            finished(folder / "runs" / "a1b2", commit="96ac4617fc64c098b8008276ec4abf16ecd9394b"),
            stopped(folder / "runs" / "c3d4", upto=640, label="a longer label, with γ = 0.999"),
        ]
        launch(counting_sweep(RATES, grid("finetune.utd", (0.1, 0.2))), folder / "sweep")
        return {
            "run": run_page.write(with_demonstrations(folder / "run")),
            "several": run_page.write(runs, folder / "several"),
            "benchmark": benchmark_page.write(partial_benchmark(folder / "partial")),
            "clones": benchmark_page.write(benchmark_of_clones(folder / "clones", clones=4)),
            "one_seed": benchmark_page.write(whole_benchmark(folder / "one", seeds=1)),
            "sweep": sweep_page.write(folder / "sweep"),
        }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "several", "benchmark", "clones", "one_seed", "sweep"])
def test_a_page_fits_its_window_and_a_phone_has_one_column(browser, pages, name, width):
    printed = browser(["--dump-dom"], pages[name], width, 900)
    measured = re.search(r"<pre>(\{.*?\})</pre>", printed, re.DOTALL)
    layout = Layout(**json.loads(html.unescape(measured[1])))
    shots = Path(os.environ.get("GCP_JAX_SCREENSHOTS", ROOT / "build" / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    shot = shots / f"{name}_{width}.png"
    browser([f"--screenshot={shot}"], pages[name], width, layout.height)
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert layout.cut == []
    assert layout.width == width
    assert layout.smallest >= 8.0
    if width == 390:
        assert layout.columns == 1
