"""What every page must be: one file without network or scripts, for a phone and in dark mode."""

import re

import jinja2
import pytest
from helpers.run_folders import Page, started, stopped, with_demonstrations
from helpers.sweeps import RATES, counting_sweep, launch

from gcp_jax.launch import grid, sweep_page
from gcp_jax.report import html, plots, run_page
from gcp_jax.report.tables import Cell, fact_table, make_table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_page.write(with_demonstrations(tmp_path_factory.mktemp("run") / "a1b2"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    folders = [
        with_demonstrations(folder / "a1b2"),
        stopped(folder / "c3d4", label="_dppo <b> \" id='"),
        started(folder / "e5f6"),
    ]
    return run_page.write(folders, folder / "out")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    launch(counting_sweep(RATES, grid("finetune.utd", (0.1, 0.2))), folder)
    return sweep_page.write(folder)


@pytest.fixture(params=["run", "several", "partial", "whole", "sweep"])
def page(request):
    return Page(request.getfixturevalue(request.param))


def test_a_page_needs_no_network_and_no_script(page):
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)", page.source)
    assert "@import" not in page.source
    assert not re.search(r"(src|href|data|action|poster)=[\"']?(http|//)", page.source)


def test_a_page_fits_a_phone(page):
    assert page.metas["viewport"] == "width=device-width, initial-scale=1"
    scrolled = re.findall(r"<div class=\"scroll\"[^>]*>\s*<table", page.source)
    assert len(scrolled) == page.tags.count("table") > 0
    assert re.search(r"\.scroll \{[^}]*overflow-x:auto", page.style)
    assert re.search(r"figure svg \{[^}]*width:100%; height:auto", page.style)
    assert all(re.match(r"<svg viewBox=\"[^\"]*\" role=\"img\"", svg) for svg in page.figures)


def test_a_page_has_a_dark_mode_that_its_figures_follow(page):
    assert page.metas["color-scheme"] == "light dark"
    light, _, dark = page.style.partition("@media (prefers-color-scheme: dark)")
    for name, color in plots.css_colors(plots.LIGHT).items():
        assert f"--{name}:{color};" in light
    for name, color in plots.css_colors(plots.DARK).items():
        assert f"--{name}:{color};" in dark
    assert page.figures
    for figure in page.figures:
        assert not re.search(r"style=\"[^\"]*#[0-9a-fA-F]{3}", figure)
        used = set(re.findall(r"var\(--(\w+)\)", figure))
        assert {"paper", "ink", "faint"} <= used <= set(plots.css_colors(plots.LIGHT))


def test_every_table_can_be_downloaded_as_csv(page):
    assert len(page.downloads) == len(page.tables)
    facts = page.downloads["what_was_run.csv"]
    assert facts[0][0] == "fact"
    shown = next(table for table in page.tables if table[-1][0] == "Commit")
    assert facts[1:] == shown[-len(facts[1:]) :]
    for rows in page.downloads.values():
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1


def test_figures_do_not_share_identifiers(page):
    identifiers = re.findall(r" id=\"([^\"]*)\"", page.source)
    assert len(set(identifiers)) == len(identifiers)
    used = set(re.findall(r"url\(#([^)]*)\)", page.source))
    used |= {reference.removeprefix("#") for reference in page.references}
    assert used <= set(identifiers)


def test_text_is_escaped_in_every_part_of_a_table():
    rows = [[Cell("<i>"), "&"]]
    table = make_table('a"b', ["<b>", "x"], rows)
    facts = fact_table("facts", {"<u>": ["<s>"]}, ["<em>"])
    template = '{% import "parts.html" as parts %}{{ parts.table(a) }}{{ parts.table(b) }}'
    text = html._environment().from_string(template).render(a=table, b=facts)
    for tag in ("<i>", "<b>", "<u>", "<s>", "<em>", 'a"b'):
        assert tag not in text
    for escaped in ("&lt;i&gt;", "&lt;b&gt;", "&amp;", "&lt;u&gt;", "&lt;s&gt;", "&lt;em&gt;"):
        assert escaped in text


def test_a_template_that_refers_to_nothing_fails():
    with pytest.raises(jinja2.UndefinedError, match="'provenance' is undefined"):
        html.render("sweep.html", title="", subtitle="", state="")
