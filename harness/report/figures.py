"""Plotly figures as plain data; the page adds its theme, `drawing` draws them for papers.

Plotly reads tags in text, so all text is escaped. Deployable entries and oracles never share a picture, except where
quality is held against fluency, where each has its own colour and front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from harness.report.answer import SIDES, Row, forest
from harness.report.claims import ALPHA
from harness.report.compare import Comparison
from harness.report.contrasts import Contrast
from harness.report.curves import SearchCurve, categories, chosen_parameters, front, search_curve, strength_curves
from harness.report.entries import Entry
from harness.scoring import Estimate, Metric
from harness.statistics import mean_of

Figure = dict[str, Any]
PALETTE = ("#3f7cc8", "#d27f2c", "#2c9a72", "#a05fb4", "#cf4a5a", "#1f98a5", "#8b7a2f", "#5b6bd6")
MUTED = "#8b919c"
OPEN = "#767d89"
_DASHES = {"": "solid", "shuffled": "dot", "random": "dash", "best_of_n": "dashdot", "gold_in_prompt": "longdash"}
_KINDS = {
    "baseline": ("against baseline", 0),
    "control": ("against its control", 1),
    "ceiling": ("against what could be reached", 3),
    "methods": ("methods", 2),
}
_VERDICTS = {
    "better": (PALETTE[2], "circle"),
    "worse": (PALETTE[4], "square"),
    "not settled": (OPEN, "circle-open"),
    "not tested": (OPEN, "x"),
    "ceiling": (PALETTE[3], "diamond-open"),
}


def figures(comparison: Comparison) -> dict[str, list[Figure]]:
    """Every figure of a comparison by section; a section without data is left out. Each has a title to choose it by."""
    sides = [oracle for oracle in (False, True) if comparison.side(oracle)]
    sections = {
        "forest": [forest_figure(comparison, oracle) for oracle in sides],
        "differences": [difference_figure(comparison, name, oracle) for oracle in sides for name in comparison.metrics],
        "strengths": [figure for oracle in sides for figure in strength_figures(comparison, oracle)],
        "pareto": pareto_figures(comparison),
        "trials": [trials_figure(comparison, oracle) for oracle in sides],
        "chosen": [figure for oracle in sides for figure in chosen_figures(comparison, oracle)],
        "breakdown": [figure for oracle in sides for figure in breakdown_figures(comparison, oracle)],
    }

    # A figure without data is None, and a section without figures is left out.
    drawn = {name: [figure for figure in section if figure is not None] for name, section in sections.items()}
    return {name: section for name, section in drawn.items() if section}


def _figure(title: str, data: list[Figure], height: int, metric: str = "", **layout: Any) -> Figure:
    """A figure, and which metric it is about where a section has one for each."""
    return {"title": title, "metric": metric, "data": data, "layout": {"height": height, **layout}}


def _sided(title: str, comparison: Comparison, oracle: bool) -> str:
    """A title that says whose picture it is, where there are pictures of both."""
    if not comparison.oracles or not comparison.deployable:
        return title
    return f"{title} · {'oracle' if oracle else 'deployable'}"


def forest_figure(comparison: Comparison, oracle: bool) -> Figure | None:
    """Every method's gain over its fairest opponent with its interval and the verdict, one row each."""
    rows = [row for row in forest(comparison, oracle) if row.gain is not None]
    if not rows:
        return None
    metric = comparison.metrics[comparison.primary]
    data = [_forest_trace(rows, verdict, metric) for verdict in _VERDICTS if verdict in {row.verdict for row in rows}]
    places = {"tickvals": list(range(len(rows))), "range": [len(rows) - 0.4, -0.6], "automargin": True}
    opponents = [f"<b>{escape(row.entry)}</b><br>over {escape(row.opponent)}" for row in rows]
    verdicts = [f"<b>{escape(row.entry)}</b><br>{escape(row.text)}" for row in rows]
    notes = [
        {"x": 1.01, "xref": "paper", "xanchor": "left", "y": place, "text": escape(row.text), "showarrow": False,
         **({} if _VERDICTS[row.verdict][0] == OPEN else {"font": {"color": _VERDICTS[row.verdict][0]}})}
        for place, row in enumerate(rows)
    ]  # fmt: skip
    axes = {
        "xaxis": _difference_axis(f"gain in {escape(metric.name)}", metric),
        "yaxis": {"ticktext": opponents, "showgrid": False, "zeroline": False, **places},
    }
    figure = _figure(SIDES[oracle], data, 70 + 38 * len(rows), **axes, annotations=notes, showlegend=False,
                     margin={"l": 20, "r": 190, "t": 5, "b": 45})  # fmt: skip
    # On a phone there is no room beside the rows: the verdict takes the opponent's place.
    narrow = {"annotations": [], "margin": {"l": 20, "r": 15, "t": 5, "b": 45}}
    return {**figure, "narrow": {**narrow, "yaxis": {**axes["yaxis"], "ticktext": verdicts}}}


def _forest_trace(rows: Sequence[Row], verdict: str, metric: Metric) -> Figure:
    colour, symbol = _VERDICTS[verdict]
    mine = [(place, row.gain, row) for place, row in enumerate(rows) if row.verdict == verdict and row.gain]
    gains = [_shown(gain, metric) for _, gain, _ in mine]
    return {
        "type": "scatter", "mode": "markers", "name": verdict,
        "x": [gain[0] for gain in gains], "y": [place for place, _, _ in mine],
        "error_x": _errors(gains, colour),
        "marker": {"color": colour, "size": 11, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "customdata": [f"{escape(row.entry)} over {escape(row.opponent)}: {escape(row.text)}" for _, _, row in mine],
        "hovertemplate": "%{customdata}<br>%{x:+.3f}<extra></extra>",
    }  # fmt: skip


_Interval = tuple[float | None, float | None, float | None]


def _shown(values: _Interval, metric: Metric) -> _Interval:
    """Value, low and high as they are drawn: differences of logarithms as ratios."""
    if metric.kind != "geometric":
        return values
    value, low, high = (None if end is None else math.exp(end) for end in values)
    return value, low, high


def _difference_axis(title: str, metric: Metric) -> Figure:
    """An axis of differences with a line where there is none; of ratios, on which that line stands at 1."""
    if metric.kind == "geometric":
        return {"title": {"text": f"{title} (ratio)"}, "type": "log"}
    return {"title": {"text": title}, "zeroline": True, "zerolinewidth": 2}


def difference_figure(comparison: Comparison, metric: str, oracle: bool) -> Figure | None:
    """Paired differences with intervals, one row per comparison; filled points stand after correction."""
    shown = {entry.name for entry in comparison.side(oracle) if not entry.control}
    contrasts = [c for c in comparison.contrasts if c.difference.metric == metric and c.ours in shown]
    if not contrasts:
        return None

    data = []
    for kind, (label, tone) in _KINDS.items():
        mine = [contrast for contrast in contrasts if contrast.kind == kind]
        if mine:
            data.append(_difference_trace(comparison, mine, label, PALETTE[tone]))

    declared = comparison.metrics[metric]
    axis = _difference_axis(
        f"difference in {escape(metric)} (better is {'right' if declared.higher_is_better else 'left'})", declared
    )
    rows = {"autorange": "reversed", "automargin": True, "type": "category"}
    return _figure(_sided(metric, comparison, oracle), data, 130 + 27 * len(contrasts), xaxis=axis, yaxis=rows)


def _difference_trace(comparison: Comparison, contrasts: Sequence[Contrast], label: str, colour: str) -> Figure:
    others = [c.theirs if c.kind == "methods" else comparison.entry(c.theirs).control or c.theirs for c in contrasts]
    metric = comparison.metrics[contrasts[0].difference.metric]
    gaps = [_shown((gap.value, gap.low, gap.high), metric) for gap in (contrast.difference for contrast in contrasts)]
    return {
        "type": "scatter", "mode": "markers", "name": label,
        "x": [gap[0] for gap in gaps],
        "y": [escape(f"{c.ours} − {other}") for c, other in zip(contrasts, others, strict=True)],
        "error_x": _errors(gaps, colour),
        "marker": {
            "color": colour, "size": 10, "line": {"width": 2, "color": colour},
            "symbol": ["circle" if _stands(comparison, contrast) else "circle-open" for contrast in contrasts],
        },
        "hovertemplate": "%{y}<br>%{x:+.3f}<extra></extra>",
    }  # fmt: skip


def _stands(comparison: Comparison, contrast: Contrast) -> bool:
    """Whether a test settled this difference: that of the claim it is part of, or its own."""
    if contrast.kind == "methods":
        return contrast.p_holm is not None and contrast.p_holm <= ALPHA
    claim = comparison.claim(comparison.entry(contrast.ours))
    return claim is not None and contrast in claim.opponents and claim.verdict == "better"


def _errors(values: Sequence[_Interval], colour: str) -> Figure:
    """Plotly's asymmetric error bars from value, low and high; an open end draws no bar."""
    up = [0 if high is None or value is None else high - value for value, _, high in values]
    down = [0 if low is None or value is None else value - low for value, low, _ in values]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour, "thickness": 1.6,
            "width": 4}  # fmt: skip


def strength_figures(comparison: Comparison, oracle: bool) -> list[Figure]:
    """Metric against strength with intervals and the baseline as a line, for every metric."""
    curves = strength_curves(comparison.side(oracle))
    if not curves:
        return []
    drawn = []
    for metric in comparison.metrics:
        data = [
            _curve_trace(f"{curve.method} · {curve.setting}", [strength for strength, _ in curve.points],
                         [comparison.estimates[entry.name].get(metric) for _, entry in curve.points], tone)
            for tone, curve in enumerate(curves)
        ]  # fmt: skip
        setting = escape(curves[0].setting) if len({curve.setting for curve in curves}) == 1 else "strength"
        axes = {"xaxis": {"title": {"text": setting}}, "yaxis": _value_axis(comparison.metrics[metric])}
        data += _baseline_trace(comparison, curves, metric)
        drawn.append(_figure(_sided(metric, comparison, oracle), data, 380, metric, **axes))
    return drawn


def _value_axis(metric: Metric) -> Figure:
    axis: Figure = {"title": {"text": escape(metric.name)}}
    return {**axis, "type": "log"} if metric.kind == "geometric" else axis


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
    axis = {**_value_axis(cost), "title": {"text": f"{escape(cost.name)} (left is better)"}}
    names: Figure = {"xaxis": axis, "yaxis": {"title": {"text": escape(quality)}}}
    return _figure(f"{quality} against {cost.name}", data, 460, quality, **names)


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


def trials_figure(comparison: Comparison, oracle: bool) -> Figure | None:
    """Best objective so far against the number of trials, mean over examples with intervals."""
    searched = [(entry, curve) for entry in comparison.side(oracle) if (curve := search_curve(entry)) is not None]
    if not searched:
        return None
    families = list(dict.fromkeys(_family(entry) for entry, _ in searched))
    tones = {family: PALETTE[index % len(PALETTE)] for index, family in enumerate(families)}
    data = [_search_trace(entry, curve, tones[_family(entry)]) for entry, curve in searched]
    axes = {"xaxis": {"title": {"text": "trials per example"}}, "yaxis": {"title": {"text": "best objective so far"}}}
    return _figure(_sided("objective", comparison, oracle), data, 440, **axes)


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


def chosen_figures(comparison: Comparison, oracle: bool) -> list[Figure]:
    """How often each strength was chosen, per parameter (a layer or segment), shares of examples."""
    rows = {
        f"{entry.name} · {name}": values
        for entry in comparison.side(oracle)
        if not entry.control
        for name, values in chosen_parameters(entry).items()
    }
    layers = {name: values for name, values in rows.items() if name.rsplit(" · ", 1)[-1].endswith("layer")}
    strengths = {name: values for name, values in rows.items() if name not in layers}

    maps = []
    for title, chosen in (("strengths", strengths), ("layers", layers)):
        if chosen:
            maps.append(_histogram_map(_sided(title, comparison, oracle), chosen))
    return maps


def _histogram_map(title: str, rows: Mapping[str, Sequence[float]]) -> Figure:
    edges = _edges(np.concatenate([np.asarray(values) for values in rows.values()]))
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


def breakdown_figures(comparison: Comparison, oracle: bool) -> list[Figure]:
    """Mean of each headline metric by topic, answer type or group."""
    drawn = []
    for field in ("topic", "answer_type", "group"):
        groups = categories(comparison, field)
        if groups:
            drawn.extend(_breakdown(comparison, field, groups, metric, oracle) for metric in comparison.headline)
    return drawn


def _means_by_group(entry: Entry, metric: Metric, groups: Mapping[str, Sequence[str]]) -> list[float | None]:
    scores = entry.scores(metric.name)
    return [mean_of(metric, [scores.get(example) for example in ids]) for ids in groups.values()]


def _breakdown(
    comparison: Comparison, field: str, groups: Mapping[str, Sequence[str]], name: str, oracle: bool
) -> Figure:
    shown = [entry for entry in comparison.side(oracle) if not entry.control]
    metric = comparison.metrics[name]
    means = [_means_by_group(entry, metric, groups) for entry in shown]
    heat = {
        "type": "heatmap", "z": means, "y": [escape(entry.name) for entry in shown],
        "x": [escape(f"{group} ({len(ids)})") for group, ids in groups.items()],
        "text": [["" if value is None else f"{value:.2f}" for value in row] for row in means],
        "texttemplate": "%{text}", "colorbar": {"title": {"text": escape(name)}, "thickness": 12},
        "hovertemplate": "%{y}<br>%{x}<br>%{z:.3f}<extra></extra>", "xgap": 1, "ygap": 1,
        "reversescale": not metric.higher_is_better,
    }  # fmt: skip
    axes: Figure = {
        "xaxis": {"automargin": True, "type": "category"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    title = _sided(f"{name} by {field.replace('_', ' ')}", comparison, oracle)
    return _figure(title, [heat], 150 + 34 * len(shown), **axes)
