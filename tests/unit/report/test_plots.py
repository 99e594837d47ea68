"""Figures: themes, SVG for the page, and matplotlib's global state."""

import matplotlib
import numpy as np
import pytest
from helpers.run_folders import finished, row, started
from matplotlib.figure import Figure

from gcp_jax.report import benchmark_plots, plots, run_page, run_plots
from gcp_jax.report.read import read_run
from gcp_jax.run import metrics


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], (0.0, 1.0)),
        ([0.25, 0.25], (0.0, 0.5)),
        ([-4.0, -4.0, np.nan], (-8.0, 0.0)),
        ([742.3, 742.3 + 1e-5], (0.0, 1484.6)),
    ],
)
def test_a_constant_is_drawn_in_the_middle_of_an_axis_from_zero(values, expected):
    ax = Figure().add_subplot()
    ax.plot(values)
    plots.show_constant(ax, np.asarray(values))
    assert ax.get_ylim() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("values", [[1.0, 1.001], [np.nan, np.nan], []])
def test_what_changes_or_is_missing_keeps_its_axis(values):
    ax = Figure().add_subplot()
    ax.plot(values)
    before = ax.get_ylim()
    plots.show_constant(ax, np.asarray(values))
    assert ax.get_ylim() == before


def test_ticks_have_no_offset_to_be_added():
    ax = Figure().add_subplot()
    ax.plot([0, 1], [10000.1, 10000.2])
    plots.style_axes(ax, "", "")
    assert not ax.yaxis.get_major_formatter().get_useOffset()


def drawn(chart, label):
    """The axes of one panel of a chart."""
    ax = Figure().add_subplot()
    next(panel for panel in chart.panels if panel.label.startswith(label)).draw(ax)
    return ax


def test_beside_a_rate_stands_of_how_many_episodes_it_is(tmp_path):
    run = read_run(finished(tmp_path / "run"))
    chart = run_plots.learning_curves([run])
    assert drawn(chart, "Evaluation success").get_title(loc="right") == "80 episodes a point"
    # two seeds of 22, 662 and 1302 episodes: the first point is joined with the second
    training = drawn(chart, "Success of training")
    assert training.get_title(loc="right") == "1,368–2,604 episodes a point"
    assert drawn(chart, "Evaluation episode length").get_title(loc="right") == "80 episodes a point"


def test_a_rate_of_training_episodes_is_over_all_episodes_not_over_seeds(tmp_path):
    folder = started(tmp_path / "run")
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        for seed, success, count in ((0, 1.0, 10), (1, 0.0, 190)):
            columns = {"episode/success": success, "episode/episodes": float(count)}
            writer.write(row("finetune", seed, 64, 8, **columns))
    ax = drawn(run_plots.learning_curves([read_run(folder)]), "Success of training")
    (line,) = ax.lines
    assert line.get_ydata().tolist() == [5.0]
    assert ax.get_title(loc="right") == "200 episodes a point"


def test_the_clone_has_one_posterior_and_every_seed_has_one_of_its_own(tmp_path):
    run = read_run(finished(tmp_path / "run"))
    ax = drawn(run_plots.posteriors([run]), "posterior")
    assert len(ax.collections) == 1 + 2


@pytest.mark.parametrize(
    ("drawn_range", "expected"),
    [((-0.06, 0.06), (-3.0, 17.0)), ((99.0, 101.0), (83.0, 103.0)), ((40.0, 75.0), (40.0, 75.0))],
)
def test_interquartile_means_that_hardly_differ_are_not_magnified(drawn_range, expected):
    assert benchmark_plots._at_least_wide(*drawn_range) == pytest.approx(expected)
