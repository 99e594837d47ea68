"""Pages from templates: every text is escaped, and nothing on a page is loaded from elsewhere.

The templates are in ``templates/`` and hold all prose. A page is one file with its style sheet,
figures, videos and CSV files inside it; it uses no scripts.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gcp_jax.report import plots
from gcp_jax.report.tables import Table

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **context: Any) -> str:
    """Render a page.

    Args:
        template: name of a file in ``templates/``.
        context: what the template refers to; a missing name is an error.
    """
    return _environment().get_template(template).render(context)


def data_uri(data: bytes, media_type: str) -> str:
    """A URI that contains the data itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def csv_uri(table: Table) -> str:
    """A URI that contains the CSV of a table."""
    return data_uri(table.csv.encode("utf-8"), "text/csv;charset=utf-8")


def key_svg(item: plots.LegendItem) -> Markup:
    """A line or band as in the figures, to stand before its name."""
    style = f"stroke:{plots.css_color(item.color)};opacity:{item.alpha:g}"
    if item.kind == "band":
        style += ";stroke-width:10"
    else:
        dashes = " ".join(f"{item.width * length:g}" for length in item.dashes)
        style += f";stroke-width:{item.width:g};stroke-dasharray:{dashes or 'none'}"
    return Markup(
        '<svg class="key" viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">'
        f'<line x2="30" y1="5" y2="5" style="{style}"/></svg>'
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csv_uri"] = csv_uri
    environment.filters["key_svg"] = key_svg
    environment.filters["svg"] = plots.panel_svg
    environment.globals["light"] = plots.css_colors(plots.LIGHT)
    environment.globals["dark"] = plots.css_colors(plots.DARK)
    return environment
