"""How figures look: told apart by colour-blind people, and in grey by marker, dash and lightness."""

from __future__ import annotations

from typing import Any, NamedTuple


class Style(NamedTuple):
    """One kind of thing: colour, marker and dash of plotly and of matplotlib."""

    colour: str
    symbol: str
    dash: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


# Okabe & Ito's colours, in an order that also alternates in lightness
STYLES = (
    Style("#0072B2", "circle", "solid", "o", "-"),
    Style("#D55E00", "square", "dash", "s", "--"),
    Style("#009E73", "triangle-up", "dashdot", "^", "-."),
    Style("#CC79A7", "diamond", "dot", "D", ":"),
    Style("#E69F00", "triangle-down", "longdash", "v", (0, (8, 3))),
    Style("#56B4E9", "pentagon", "longdashdot", "p", (0, (8, 2, 2, 2))),
    Style("#000000", "star", "solid", "*", "-"),
    Style("#8A7A00", "hexagon", "dash", "h", "--"),
)

POINT, CURRENT, BASE, EXPERT, OTHER = "#0072B2", "#D55E00", "#1f2937", "#009E73", "#6b7280"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
INK, PALE, GRID = "#1f2937", "#6b7280", "#e5e7eb"

CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


def style(index: int) -> Style:
    """The style of the i-th thing; after eight they come again."""
    return STYLES[index % len(STYLES)]


def layout(**changes: Any) -> dict[str, Any]:
    """The part of a plotly layout that all figures share."""
    return {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 20, "t": 24, "b": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "uirevision": "kept",  # a zoom outlives the next figure
        **changes,
    }


def axis(title: str = "", **changes: Any) -> dict[str, Any]:
    """A plotly axis."""
    return {
        "title": {"text": title, "standoff": 10}, "gridcolor": GRID, "zeroline": False, "linecolor": PALE, "showline": True,
        "ticks": "outside", "tickcolor": PALE, "automargin": True, **changes,
    }  # fmt: skip
