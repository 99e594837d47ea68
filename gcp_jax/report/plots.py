"""Figures: colors, axes, and their conversion to SVG for a page and to PNG for a file.

A ``Chart`` is drawn twice from the same panels: each panel as an SVG of its own, so that a page can
stack them on a narrow screen, and all together with the legend as one PNG. The SVG uses the page's
CSS variables as colors and therefore follows its light and dark mode. Figures are drawn by
matplotlib without pyplot, so neither its global state nor the user's backend matters.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, ScalarFormatter
from numpy.typing import NDArray

PNG_DPI = 200  # about twice the pixels that a page shows
DASHED: tuple[float, ...] = (4.0, 3.0)  # on and off, in line widths

XLABELS = {"env_steps": "environment steps per seed", "updates": "gradient updates"}


class Theme(NamedTuple):
    """Colors of the figures on a light or a dark page.

    The palettes are those of Okabe & Ito (2008); black and yellow are shifted to stand out from the
    paper and from each other.
    """

    paper: str
    ink: str
    faint: str  # grid and axes
    base: str  # what belongs to the policy before finetuning
    palette: tuple[str, ...]  # one color a run or method


LIGHT = Theme(
    paper="#ffffff",
    ink="#1f2328",
    faint="#d0d7de",
    base="#8c959f",
    palette=(
        *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
        *("#E69F00", "#56B4E9", "#1f2328", "#a89f00"),
    ),
)
DARK = Theme(
    paper="#0d1117",
    ink="#e6edf3",
    faint="#3d444d",
    base="#8c959f",
    palette=(
        *("#56B4E9", "#E69F00", "#2AB58C", "#CC79A7"),
        *("#F0E442", "#D55E00", "#e6edf3", "#6f86ff"),
    ),
)


class LegendItem(NamedTuple):
    """One entry of a legend: a line, or a band."""

    label: str
    color: str  # one of LIGHT
    kind: Literal["line", "band"] = "line"
    width: float = 2.0
    alpha: float = 1.0
    dashes: tuple[float, ...] = ()  # on and off, in line widths; () is solid


class Panel(NamedTuple):
    """One plot of a chart."""

    label: str  # what it shows, for those who cannot see it; no two of a page are alike
    draw: Callable[[Axes], None]
    size: tuple[float, float]  # inches


class Chart(NamedTuple):
    """Panels that belong together, with their legend."""

    panels: tuple[Panel, ...]
    legend: tuple[LegendItem, ...] = ()
    columns: int = 2  # of the PNG; a page has as many as fit
    legend_columns: int = 4  # of the PNG

    def png(self) -> bytes:
        """All panels and the legend as one PNG."""
        return png_bytes(chart_figure(self))


def css_colors(theme: Theme) -> dict[str, str]:
    """The colors of a theme by the names of their CSS variables, without the leading dashes."""
    colors = {
        "paper": theme.paper,
        "ink": theme.ink,
        "faint": theme.faint,
        "base": theme.base,
    }
    for index, color in enumerate(theme.palette):
        colors[f"run{index}"] = color
    return colors


def series_color(index: int) -> str:
    """The color of the run or method with this index."""
    return LIGHT.palette[index % len(LIGHT.palette)]


def css_color(color: str) -> str:
    """A color of LIGHT as the CSS variable that has it in the page's light mode."""
    return _CSS_COLORS[color.lower()]


def style_axes(ax: Axes, title: str, ylabel: str, xlabel: str = "", size: float = 9.0) -> None:
    """Set title and axis labels, and style ticks, grid and spines.

    Args:
        ax: the axes.
        title: set at the left; shown as it is, not as math text.
        ylabel: label of the vertical axis.
        xlabel: label of the horizontal axis.
        size: font size of the labels, in points.
    """
    ax.set_title(title, color=LIGHT.ink, fontsize=size + 1, loc="left", parse_math=False)
    ax.set_xlabel(xlabel, color=LIGHT.ink, fontsize=size)
    ax.set_ylabel(ylabel, color=LIGHT.ink, fontsize=size)
    ax.xaxis.set_major_formatter(FuncFormatter(_format_tick))
    if isinstance(ax.yaxis.get_major_formatter(), ScalarFormatter):
        ax.ticklabel_format(axis="y", useOffset=False)
    ax.tick_params(colors=LIGHT.ink, labelsize=size - 0.5, length=0)
    ax.tick_params(which="minor", length=0, labelleft=False)
    ax.grid(color=LIGHT.faint, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_facecolor(LIGHT.paper)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT.faint)


def show_constant(ax: Axes, values: NDArray[np.floating]) -> None:
    """Start the vertical axis at 0 if all values are alike, instead of magnifying their rounding.

    Args:
        ax: the axes, in the scale of the values.
        values: what was drawn; NaN is left out.
    """
    known = values[np.isfinite(values)]
    if known.size == 0:
        return
    largest = float(np.abs(known).max())
    if float(np.ptp(known)) > 1e-6 * largest:
        return
    middle = float(known.mean())
    if middle < 0:
        ax.set_ylim(2 * middle, 0.0)
    else:
        ax.set_ylim(0.0, 2 * middle or 1.0)


def _format_tick(value: float, position: int | None = None) -> str:
    """``0.5``, ``200``, ``1.2k`` or ``3M``."""
    if abs(value) < 1000:
        return f"{value:g}".replace("-", "−")
    return EngFormatter(sep="").format_eng(value)


def write_centered(ax: Axes, text: str, size: float = 9.0) -> None:
    """Write a text in the middle of the axes, for want of data."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": LIGHT.ink, "fontsize": size}
    ax.text(0.5, 0.5, text, transform=ax.transAxes, **style)


def write_aside(ax: Axes, text: str, size: float) -> None:
    """Write a text at the right above the axes, in the line of the title."""
    ax.set_title(text, color=LIGHT.base, fontsize=size, loc="right", parse_math=False)


def line_style(color: str, dashes: tuple[float, ...] = (), width: float = 2.0) -> dict[str, Any]:
    """Keyword arguments of ``Axes.plot`` for a line with the given dashes, in line widths."""
    return {"color": color, "linestyle": (0, dashes or None), "linewidth": width}


def chart_figure(chart: Chart) -> Figure:
    """All panels in one figure, with the legend above them."""
    columns = min(chart.columns, len(chart.panels))
    lines = math.ceil(len(chart.panels) / columns)
    widths = [panel.size[0] for panel in chart.panels[:columns]]
    height = max(panel.size[1] for panel in chart.panels)
    figure = _new_figure(sum(widths), lines * height)
    grid = figure.add_gridspec(lines, columns, width_ratios=widths)
    for index, panel in enumerate(chart.panels):
        panel.draw(figure.add_subplot(grid[index // columns, index % columns]))
    if chart.legend:
        _draw_legend(figure, chart.legend, chart.legend_columns)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(buffer)  # savefig would draw it twice
    return buffer.getvalue()


def panel_svg(panel: Panel) -> Markup:
    """A panel as an SVG element whose colors are the page's CSS variables."""
    figure = _new_figure(*panel.size)
    panel.draw(figure.add_subplot())
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gcp-jax"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), panel.label))


def _new_figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    return figure


def _draw_legend(figure: Figure, items: Sequence[LegendItem], columns: int) -> None:
    handles = [_legend_handle(item) for item in items]
    labels = [f" {item.label}" for item in items]  # matplotlib omits labels that start with "_"
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
    )
    for text in legend.get_texts():
        text.set_color(LIGHT.ink)
        text.set_parse_math(False)


def _legend_handle(item: LegendItem) -> Patch | Line2D:
    if item.kind == "band":
        return Patch(color=item.color, alpha=item.alpha, linewidth=0)
    return Line2D([], [], alpha=item.alpha, **line_style(item.color, item.dashes, item.width))


def _css_names() -> Iterator[tuple[str, str]]:
    """Every color of LIGHT with its CSS variable; of equal colors the first name comes last."""
    for name, color in reversed(css_colors(LIGHT).items()):
        yield color.lower(), f"var(--{name})"


_CSS_COLORS = dict(_css_names())
_HEAD = re.compile(r".*?<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_LEFT_OUT = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
    r"|(?<=<g) id=\"[^\"]*\"| transform=\"rotate\(-0 [^\"]*\"",
    re.DOTALL,
)
_STYLE = re.compile(r"(?<= style=\")[^\"]*")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_MATH_FAMILY = re.compile(r"(?<=px )'DejaVu Sans[^;]*")
_PATH = re.compile(r"(?<= d=\")[^\"]*")
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
_IDENTIFIER = re.compile(r"(?<= id=\")|(?<=url\(#)|(?<=href=\"#)")
_HEX_COLOR = re.compile(r"#[0-9a-f]{6}\b")


def _for_page(svg: str, label: str) -> str:
    """Turn matplotlib's SVG document into an element of a page.

    Size and font are left to the page's style sheet, colors become CSS variables, paths are
    shortened, and identifiers are made unlike those of other figures.
    """
    head = _HEAD.match(svg)
    if head is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = _LEFT_OUT.sub("", svg[head.end() :])
    body = _STYLE.sub(_page_style, body)
    body = _PATH.sub(_short_path, body)
    body = _IDENTIFIER.sub(f"f{zlib.crc32((label + body).encode()):08x}-", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return f'<svg viewBox="{head[1]}" role="img" aria-label="{escape(label)}">{body}'


def _short_path(match: re.Match[str]) -> str:
    return _LONG_NUMBER.sub(r"\1", match[0]).replace("\n", "")


def _page_style(match: re.Match[str]) -> str:
    style = _MATH_FAMILY.sub("system-ui, sans-serif", _FAMILY.sub("", match[0]))
    return _HEX_COLOR.sub(_css_variable, style)


def _css_variable(match: re.Match[str]) -> str:
    return _CSS_COLORS.get(match[0], match[0])
