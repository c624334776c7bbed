"""Plotly figures as plain data; the page adds its theme. Plotly reads tags in text, so all text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from harness.report.compare import Comparison, Contrast
from harness.report.curves import SearchCurve, categories, chosen_parameters, front, search_curve, strength_curves
from harness.report.entries import Entry
from harness.scoring import Estimate, Metric

Figure = dict[str, Any]
PALETTE = ("#3f7cc8", "#d27f2c", "#2c9a72", "#a05fb4", "#cf4a5a", "#1f98a5", "#8b7a2f", "#5b6bd6")
MUTED = "#8b919c"
_DASHES = {"": "solid", "shuffled": "dot", "random": "dash", "best_of_n": "dashdot", "gold_in_prompt": "longdash"}
_KINDS = {"baseline": ("against baseline", 0), "control": ("against its control", 1), "methods": ("methods", 2)}


def figures(comparison: Comparison) -> dict[str, list[Figure]]:
    """Every figure of a comparison by section; a section without data is left out. Each has a title to choose it by."""
    sections = {
        "differences": [difference_figure(comparison, metric) for metric in comparison.metrics],
        "strengths": strength_figures(comparison),
        "pareto": pareto_figures(comparison),
        "trials": [trials_figure(comparison)],
        "chosen": chosen_figures(comparison),
        "breakdown": breakdown_figures(comparison),
    }
    kept = {name: [figure for figure in found if figure is not None] for name, found in sections.items()}
    return {name: found for name, found in kept.items() if found}


def _figure(title: str, data: list[Figure], height: int, **layout: Any) -> Figure:
    return {"title": title, "data": data, "layout": {"height": height, **layout}}


def difference_figure(comparison: Comparison, metric: str) -> Figure | None:
    """Paired differences with intervals, one row per comparison; filled points stand after correction."""
    contrasts = [
        c for c in comparison.contrasts
        if c.difference.metric == metric and not (c.kind == "baseline" and comparison.entry(c.ours).control)
    ]  # fmt: skip
    if not contrasts:
        return None
    data = []
    for kind, (label, tone) in _KINDS.items():
        mine = [contrast for contrast in contrasts if contrast.kind == kind]
        if mine:
            data.append(_difference_trace(comparison, mine, label, PALETTE[tone]))
    better = "right" if comparison.metrics[metric].higher_is_better else "left"
    axis = {"title": {"text": f"difference in {escape(metric)} (better is {better})"}, "zeroline": True}
    rows = {"autorange": "reversed", "automargin": True, "type": "category"}
    return _figure(metric, data, 130 + 27 * len(contrasts), xaxis=axis, yaxis=rows)


def _difference_trace(comparison: Comparison, contrasts: Sequence[Contrast], label: str, colour: str) -> Figure:
    others = [comparison.entry(c.theirs).control if c.kind == "control" else c.theirs for c in contrasts]
    gaps = [contrast.difference for contrast in contrasts]
    return {
        "type": "scatter", "mode": "markers", "name": label,
        "x": [gap.value for gap in gaps],
        "y": [escape(f"{c.ours} − {other}") for c, other in zip(contrasts, others, strict=True)],
        "error_x": _errors([(gap.value, gap.low, gap.high) for gap in gaps], colour),
        "marker": {
            "color": colour, "size": 10, "line": {"width": 2, "color": colour},
            "symbol": ["circle" if contrast.significant else "circle-open" for contrast in contrasts],
        },
        "hovertemplate": "%{y}<br>%{x:+.3f}<extra></extra>",
    }  # fmt: skip


def _errors(values: Sequence[tuple[float | None, float | None, float | None]], colour: str) -> Figure:
    """Plotly's asymmetric error bars from value, low and high; an open end draws no bar."""
    up = [0 if high is None or value is None else high - value for value, _, high in values]
    down = [0 if low is None or value is None else value - low for value, low, _ in values]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.6,
            "width": 4}  # fmt: skip


def strength_figures(comparison: Comparison) -> list[Figure]:
    """Metric against strength with intervals and the baseline as a line, for every metric."""
    curves = strength_curves(comparison.entries)
    if not curves:
        return []
    found = []
    for metric in comparison.metrics:
        data = [
            _curve_trace(f"{curve.method} · {curve.setting}", [strength for strength, _ in curve.points],
                         [comparison.estimates[entry.name].get(metric) for _, entry in curve.points], tone)
            for tone, curve in enumerate(curves)
        ]  # fmt: skip
        setting = escape(curves[0].setting) if len({curve.setting for curve in curves}) == 1 else "strength"
        axes = {"xaxis": {"title": {"text": setting}}, "yaxis": {"title": {"text": escape(metric)}}}
        found.append(_figure(metric, [*data, *_baseline_trace(comparison, curves, metric)], 380, **axes))
    return found


def _curve_trace(name: str, x: list[float], estimates: Sequence[Estimate | None], tone: int) -> Figure:
    triples = [(None, None, None) if e is None else (e.value, e.low, e.high) for e in estimates]
    colour = PALETTE[tone % len(PALETTE)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": escape(name), "x": x, "y": [t[0] for t in triples],
        "error_y": _errors(triples, colour), "line": {"color": colour}, "marker": {"size": 8},
    }  # fmt: skip


def _baseline_trace(comparison: Comparison, curves: Sequence[Any], metric: str) -> list[Figure]:
    estimate = comparison.estimates[comparison.baseline.name].get(metric) if comparison.baseline else None
    if estimate is None:
        return []
    ends = [strength for curve in curves for strength, _ in curve.points]
    return [{
        "type": "scatter", "mode": "lines", "name": "baseline", "x": [min(ends), max(ends)],
        "y": [estimate.value] * 2, "line": {"dash": "dot", "color": MUTED},
    }]  # fmt: skip


def pareto_figures(comparison: Comparison) -> list[Figure]:
    """Quality against perplexity and against repetition, with the front of deployable and of oracle entries."""
    qualities = [name for name in comparison.headline if comparison.metrics[name].higher_is_better]
    costs = [
        metric for name, metric in comparison.metrics.items()
        if not metric.higher_is_better and ("perplexity" in name or name.startswith("repe"))
    ]  # fmt: skip
    return [_pareto(comparison, quality, cost) for quality in qualities for cost in costs]


def _pareto(comparison: Comparison, quality: str, cost: Metric) -> Figure:
    data = []
    for label, entries, colour in (
        ("deployable", comparison.deployable, PALETTE[2]), ("oracle", comparison.oracles, PALETTE[3])
    ):  # fmt: skip
        placed = [(entry, *_pair(comparison, entry, quality, cost.name)) for entry in entries]
        known = [(e, x, y) for e, x, y in placed if x is not None and y is not None and None not in (x.value, y.value)]
        if known:
            data.extend(_pareto_traces(label, known, colour))
    axis: Figure = {"title": {"text": f"{escape(cost.name)} (left is better)"}}
    if math.isinf(cost.high):
        axis["type"] = "log"
    return _figure(f"{quality} against {cost.name}", data, 460, xaxis=axis, yaxis={"title": {"text": escape(quality)}})


def _pair(comparison: Comparison, entry: Entry, quality: str, cost: str) -> tuple[Estimate | None, Estimate | None]:
    estimates = comparison.estimates[entry.name]
    return estimates.get(cost), estimates.get(quality)


def _pareto_traces(label: str, known: Sequence[tuple[Entry, Any, Any]], colour: str) -> list[Figure]:
    best = front([(x.value, y.value, entry.name) for entry, x, y in known if not entry.control])
    points = {
        "type": "scatter", "mode": "markers+text", "name": label, "textposition": "top center",
        "x": [x.value for _, x, _ in known], "y": [y.value for _, _, y in known],
        "text": [escape(entry.name) if not entry.control else "" for entry, _, _ in known],
        "customdata": [escape(entry.name) for entry, _, _ in known],
        "hovertemplate": "%{customdata}<br>%{x:.3g}, %{y:.3f}<extra></extra>",
        "error_x": _errors([(x.value, x.low, x.high) for _, x, _ in known], colour) | {"thickness": 0.7, "width": 0},
        "error_y": _errors([(y.value, y.low, y.high) for _, _, y in known], colour) | {"thickness": 0.7, "width": 0},
        "marker": {"color": colour, "size": 9,
                   "symbol": ["diamond-open" if entry.control else "circle" for entry, _, _ in known]},
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "name": f"front, {label}", "hoverinfo": "skip",
        "x": [x for x, _, _ in best], "y": [y for _, y, _ in best],
        "line": {"color": colour, "width": 1, "dash": "dot", "shape": "hv"},
    }  # fmt: skip
    return [points, line]


def trials_figure(comparison: Comparison) -> Figure | None:
    """Best objective so far against the number of trials, mean over examples with intervals."""
    found = [(entry, curve) for entry in comparison.entries if (curve := search_curve(entry)) is not None]
    if not found:
        return None
    families = list(dict.fromkeys(_family(entry) for entry, _ in found))
    tones = {family: PALETTE[index % len(PALETTE)] for index, family in enumerate(families)}
    data = [_search_trace(entry, curve, tones[_family(entry)]) for entry, curve in found]
    axes = {"xaxis": {"title": {"text": "trials per example"}}, "yaxis": {"title": {"text": "best objective so far"}}}
    return _figure("objective", data, 440, **axes)


def _family(entry: Entry) -> tuple[str, str]:
    return entry.label("method"), entry.label("search")


def _search_trace(entry: Entry, curve: SearchCurve, colour: str) -> Figure:
    triples = list(zip(curve.mean, curve.low, curve.high, strict=True))
    line = {"color": colour, "dash": _DASHES.get(entry.control, "longdashdot"), "width": 1.5 if entry.control else 2.5}
    return {
        "type": "scatter", "mode": "lines+markers", "name": escape(entry.name), "y": list(curve.mean),
        "x": list(range(curve.start, curve.start + len(curve.mean))), "marker": {"size": 5},
        "error_y": _errors(triples, colour) | {"thickness": 0.8, "width": 2},
        "line": line,
    }  # fmt: skip


def chosen_figures(comparison: Comparison) -> list[Figure]:
    """How often each strength was chosen, per parameter (a layer or segment), shares of examples."""
    rows = {
        f"{entry.name} · {name}": values
        for entry in comparison.entries
        if not entry.control
        for name, values in chosen_parameters(entry).items()
    }
    layers = {name: values for name, values in rows.items() if name.rsplit(" · ", 1)[-1].endswith("layer")}
    strengths = {name: values for name, values in rows.items() if name not in layers}
    found = []
    for title, chosen in (("strengths", strengths), ("layers", layers)):
        if chosen:
            found.append(_histogram_map(title, chosen))
    return found


def _histogram_map(title: str, rows: Mapping[str, Sequence[float]]) -> Figure:
    every = np.concatenate([np.asarray(values) for values in rows.values()])
    edges = _edges(every)
    shares = [np.histogram(values, edges)[0] / len(values) for values in rows.values()]
    labels = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    heat = {
        "type": "heatmap", "x": labels, "y": [escape(name) for name in rows], "z": [share.tolist() for share in shares],
        "colorbar": {"title": {"text": "share"}, "tickformat": ".0%", "thickness": 12}, "xgap": 1, "ygap": 1,
        "hovertemplate": "%{y}<br>%{x}<br>%{z:.0%} of examples<extra></extra>", "zmin": 0,
    }  # fmt: skip
    axis = {"title": {"text": "chosen value"}, "type": "category", "automargin": True}
    rows_axis = {"automargin": True, "autorange": "reversed"}
    return _figure(title, [heat], 170 + 34 * len(rows), xaxis=axis, yaxis=rows_axis)


def _edges(values: np.ndarray, count: int = 12) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    spaced = np.geomspace if low > 0 and high / low > 10 else np.linspace
    edges = spaced(low, high, count + 1)
    edges[0] = low
    edges[-1] = np.nextafter(high, np.inf)
    return edges


def breakdown_figures(comparison: Comparison) -> list[Figure]:
    """Mean of each headline metric by topic, answer type or group."""
    found = []
    for field in ("topic", "answer_type", "group"):
        groups = categories(comparison, field)
        if groups:
            found.extend(_breakdown(comparison, field, groups, metric) for metric in comparison.headline)
    return found


def _breakdown(comparison: Comparison, field: str, groups: Mapping[str, Sequence[str]], metric: str) -> Figure:
    shown = [entry for entry in comparison.entries if not entry.control]
    means = [[_mean(entry.scores(metric), ids) for ids in groups.values()] for entry in shown]
    heat = {
        "type": "heatmap", "z": means, "y": [escape(entry.name) for entry in shown],
        "x": [escape(f"{name} ({len(ids)})") for name, ids in groups.items()],
        "text": [["" if value is None else f"{value:.2f}" for value in row] for row in means],
        "texttemplate": "%{text}", "colorbar": {"title": {"text": escape(metric)}, "thickness": 12},
        "hovertemplate": "%{y}<br>%{x}<br>%{z:.3f}<extra></extra>", "xgap": 1, "ygap": 1,
        "reversescale": not comparison.metrics[metric].higher_is_better,
    }  # fmt: skip
    axes = {"xaxis": {"automargin": True, "type": "category"}, "yaxis": {"automargin": True, "autorange": "reversed"}}
    return _figure(f"{metric} by {field.replace('_', ' ')}", [heat], 150 + 34 * len(shown), **axes)


def _mean(scores: Mapping[str, float], ids: Sequence[str]) -> float | None:
    values = [scores[example] for example in ids if example in scores]
    return sum(values) / len(values) if values else None
