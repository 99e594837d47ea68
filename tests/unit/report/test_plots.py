"""Figures: themes, SVG for the page, and matplotlib's global state."""

import matplotlib
from helpers.run_folders import started

from gcp_jax.report import benchmark_plots, plots, run_page


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    run_page.write(started(tmp_path / "run"))
    assert dict(matplotlib.rcParams) == before


def test_methods_are_distinguished_by_color_and_line():
    for theme in (plots.LIGHT, plots.DARK):
        assert len(set(theme.palette)) == 8
        assert theme.paper not in theme.palette
    lines = {(plots.series_color(i), benchmark_plots.method_dashes(i)) for i in range(32)}
    assert len(lines) == 32


def test_a_color_with_two_names_is_the_same_in_both_themes():
    light = plots.css_colors(plots.LIGHT)
    dark = plots.css_colors(plots.DARK)
    for name, color in light.items():
        for other in light:
            if light[other] == color:
                assert dark[name] == dark[other]


def draw_labels(ax):
    ax.plot([1, 2], [1e-4, 1e3], color=plots.LIGHT.palette[1], marker="o")
    ax.set_yscale("log")
    plots.style_axes(ax, "_a <b> $\\frac", "y & z", "x: #0072b2", 9)


def test_a_panel_is_drawn_in_the_colors_of_the_page_with_its_text_as_text():
    svg = plots.panel_svg(plots.Panel(label='"quoted" <i>', draw=draw_labels, size=(3, 2)))
    assert svg.startswith('<svg viewBox="0 0 216 144" role="img"')
    assert 'aria-label="&quot;quoted&quot; &lt;i&gt;"' in svg
    assert "_a &lt;b&gt; $\\frac" in svg and "y &amp; z" in svg and "x: #0072b2" in svg
    assert "stroke: var(--run1)" in svg
    assert "<style" not in svg and "<metadata" not in svg


def test_a_panel_is_drawn_the_same_every_time():
    panel = plots.Panel(label="a", draw=draw_labels, size=(3, 2))
    assert plots.panel_svg(panel) == plots.panel_svg(panel)


def test_a_png_has_all_panels_and_about_twice_the_pixels_of_the_page():
    panel = plots.Panel(label="a", draw=draw_labels, size=(3, 2))
    legend = (
        plots.LegendItem(label="_first $x", color=plots.LIGHT.ink, dashes=(2, 1)),
        plots.LegendItem(label="band", color=plots.LIGHT.base, kind="band", alpha=0.2),
    )
    figure = plots.chart_figure(plots.Chart(panels=(panel,) * 3, legend=legend))
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _first $x", " band"]
    data = plots.png_bytes(figure)
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") == 6 * plots.PNG_DPI
