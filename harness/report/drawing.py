"""Draws the page's figures without a browser, as SVG and PNG for papers.

`harness.report.figures` describes figures as Plotly's plain data; this reads the part of it that they use: points and
lines with intervals, and heat maps.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from harness.records.lines import replaced
from harness.report.figures import Figure

FORMATS = ("svg", "png")
_INCHES_WIDE, _PIXELS_PER_INCH, _DOTS_PER_INCH = 7.0, 100, 200
_INK, _GRID, _SOFT = "#1b1f26", "#e3e6eb", "#626b78"
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "x": "x"}
_DASHES = {
    "solid": "-",
    "dot": ":",
    "dash": "--",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 3, 2, 3)),
}
_STYLE: Any = {
    "svg.hashsalt": "report",  # the same figure is the same file
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(figure: Figure, path: Path) -> list[Path]:
    """Write one figure as ``path`` with each suffix of `FORMATS`; return the files."""
    written = [path.with_suffix(f".{suffix}") for suffix in FORMATS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        canvas = _canvas(figure)
        for file in written:
            with replaced(file) as draft:
                metadata = {"Date": None} if file.suffix == ".svg" else {}
                canvas.savefig(
                    draft, format=file.suffix[1:], dpi=_DOTS_PER_INCH, bbox_inches="tight", metadata=metadata
                )
    return written


def _canvas(figure: Figure) -> Canvas:
    layout = figure["layout"]
    canvas = Canvas(figsize=(_INCHES_WIDE, layout["height"] / _PIXELS_PER_INCH))
    axes = canvas.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    across = layout.get("yaxis", {}).get("showgrid", True)
    axes.grid(color=_GRID, linewidth=0.6, axis="both" if across else "x")
    axes.set_axisbelow(True)

    rows = _categories(figure["data"], layout)
    for trace in figure["data"]:
        if trace["type"] == "heatmap":
            _draw_map(axes, trace)
        else:
            _draw_points(axes, trace, rows)
    _set_axes(axes, layout, rows)
    for note in layout.get("annotations", ()):
        place = axes.get_yaxis_transform()
        colour = note.get("font", {}).get("color", _INK)
        axes.text(note["x"], note["y"], _plain(note["text"]), transform=place, va="center", color=colour)
    named = [trace for trace in figure["data"] if trace.get("name")]
    if layout.get("showlegend", True) and len(named) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return canvas


def _plain(text: str) -> str:
    """Plotly's text without its tags."""
    return html.unescape(re.sub(r"<br>", "\n", text).replace("<b>", "").replace("</b>", ""))


def _categories(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> list[str]:
    """The names on a vertical axis of names, in order; empty for an axis of numbers."""
    if layout.get("yaxis", {}).get("type") != "category":
        return []
    return list(dict.fromkeys(name for trace in data for name in trace["y"]))


def _draw_points(axes: Axes, trace: Mapping[str, Any], rows: Sequence[str]) -> None:
    """Points or a line, with intervals."""
    x = np.asarray(trace["x"], dtype=float)
    y = np.asarray([rows.index(value) for value in trace["y"]] if rows else trace["y"], dtype=float)
    line, marker = trace.get("line", {}), trace.get("marker", {})
    colour = marker.get("color") or line.get("color")
    for name in ("x", "y"):
        if bars := trace.get(f"error_{name}"):
            spread = np.abs(np.asarray([bars["arrayminus"], bars["array"]], dtype=float))
            width = 0.7 * bars["thickness"]
            ends = {"x": (spread, None), "y": (None, spread)}[name]
            axes.errorbar(x, y, xerr=ends[0], yerr=ends[1], fmt="none", ecolor=colour, elinewidth=width, alpha=0.8)

    if "lines" in trace["mode"]:
        steps = "steps-post" if line.get("shape") == "hv" else "default"
        style, width = _DASHES[line.get("dash", "solid")], 0.7 * line.get("width", 2)
        axes.plot(x, y, color=colour, linestyle=style, linewidth=width, label=_label(trace), drawstyle=steps)
    if "markers" in trace["mode"]:
        label = None if "lines" in trace["mode"] else _label(trace)
        _draw_markers(axes, x, y, marker, colour, label)
    for place, text in enumerate(trace.get("text", ())):
        axes.annotate(_plain(text), (x[place], y[place]), (0, 5), textcoords="offset points", ha="center", fontsize=7)


def _label(trace: Mapping[str, Any]) -> str:
    return _plain(trace.get("name", ""))


def _draw_markers(
    axes: Axes, x: np.ndarray, y: np.ndarray, marker: Mapping[str, Any], colour: str, label: str | None
) -> None:
    symbols = marker.get("symbol", "circle")
    symbols = [symbols] * x.size if isinstance(symbols, str) else symbols
    for symbol in dict.fromkeys(symbols):
        mine = np.array([other == symbol for other in symbols])
        name, _, is_open = symbol.partition("-")
        face = "white" if is_open else colour
        axes.plot(
            x[mine], y[mine], linestyle="none", marker=_MARKERS[name], markersize=0.6 * marker.get("size", 8),
            markeredgecolor=colour, markerfacecolor=face, label=label, zorder=3,
        )  # fmt: skip
        label = None


def _draw_map(axes: Axes, trace: Mapping[str, Any]) -> None:
    """A heat map with its names and figures."""
    values = np.array([[np.nan if value is None else value for value in row] for row in trace["z"]], dtype=float)
    shades = "Blues_r" if trace.get("reversescale") else "Blues"
    image = axes.imshow(values, cmap=shades, aspect="auto", alpha=0.75)
    axes.set_xticks(range(len(trace["x"])), [_plain(name) for name in trace["x"]], rotation=30, ha="right")
    axes.set_yticks(range(len(trace["y"])), [_plain(name) for name in trace["y"]])
    for row, texts in enumerate(trace.get("text", ())):
        for column, text in enumerate(texts):
            axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.figure.colorbar(image, ax=axes, label=_plain(trace["colorbar"]["title"]["text"]))
    axes.grid(visible=False)


def _set_axes(axes: Axes, layout: Mapping[str, Any], rows: Sequence[str]) -> None:
    """Titles, scales, names of rows, and the line where there is no difference."""
    across, down = layout.get("xaxis", {}), layout.get("yaxis", {})
    axes.set_xlabel(_plain(across.get("title", {}).get("text", "")))
    axes.set_ylabel(_plain(down.get("title", {}).get("text", "")))

    if across.get("type") == "log":
        axes.set_xscale("log")
    if down.get("type") == "log":
        axes.set_yscale("log")

    if "ticktext" in down:
        axes.set_yticks(down["tickvals"], [_plain(text) for text in down["ticktext"]])
        axes.set_ylim(down["range"])
    elif rows:
        axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)

    if across.get("zeroline"):
        axes.axvline(0, color=_SOFT, linewidth=1, zorder=1)
