"""Renders ``report.html``: one file that opens offline. Model outputs are untrusted and can only ever become text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from harness.data import Example
from harness.records.rows import Selected
from harness.report.answer import SIDES, answer, trust
from harness.report.compare import Comparison
from harness.report.contrasts import Contrast
from harness.report.curves import is_degenerate, steerability
from harness.report.entries import Entry, flatten
from harness.report.expect import Published
from harness.report.figures import Figure
from harness.report.summary import summary
from harness.report.wording import (
    corrected_text,
    finite,
    is_doubtful,
    metric_label,
    number,
    p_text,
    signed,
    trust_text,
    verdict_text,
)
from harness.scoring import Estimate
from harness.statistics import on_scale

Drawn = Mapping[str, Sequence[Figure]]
"""Figures by section."""

_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(comparisons: Sequence[Comparison], published: Sequence[Sequence[Published]], drawn: Sequence[Drawn]) -> str:
    """The whole page, from each comparison with published values beside ours and its figures.

    Three things keep outputs from running as script: the template escapes everything, the data lie in a JSON block
    without any ``<``, and the content security policy allows only the scripts whose hashes it names.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "signed": signed,
        "corrected": corrected_text,
        "p": p_text,
        "label": metric_label,
        "size": _size,
        "trust": trust_text,
        "verdict": verdict_text,
    }
    environment.globals |= {
        "flatten": flatten,
        "bar": _bar,
        "kinds": _KINDS,
        "contrasts": contrasts_of,
        "sides": SIDES,
        "doubtful": is_doubtful,
    }

    scripts = [_script(get_plotlyjs()), _script(_resource("report.js"))]
    data = [payload(comparison, own) for comparison, own in zip(comparisons, drawn, strict=True)]
    return environment.from_string(_resource("report.html")).render(
        pages=[
            {
                "comparison": comparison,
                "answer": answer(comparison),
                "trust": trust(comparison),
                "published": values,
                "findings": summary(comparison),
                "sections": own,
                "steerability": steerability(comparison),
            }
            for comparison, values, own in zip(comparisons, published, drawn, strict=True)
        ],
        policy=_policy(scripts),
        scripts=[Markup(script) for script in scripts],
        style=Markup(_resource("report.css")),
        data=embedded_json(data),
    )


_KINDS: Mapping[str, str] = {
    "baseline": "against the un-steered model",
    "control": "against controls",
    "ceiling": "against what could be reached",
    "methods": "method against method",
}


@cache
def _resource(name: str) -> str:
    return (files("harness.report") / name).read_text(encoding="utf-8")


def _script(source: str) -> str:
    """A script as the HTML parser will hand it over, so that its hash holds."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    if re.search(r"</script", source, re.IGNORECASE):
        raise ValueError("a script of the report holds its own end tag")
    return source


def _policy(scripts: Sequence[str]) -> str:
    """Content security policy: no network, no inline handlers, no script but those of this page."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no character in it can end the element or a JavaScript line."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in _JSON_ESCAPES.items():
        text = text.replace(character, escaped)
    return Markup(text)


def payload(comparison: Comparison, drawn: Drawn) -> dict[str, Any]:
    """What the page's script needs: figures, and every example with every entry's output."""
    return {
        "title": comparison.title,
        "baseline": comparison.baseline.name if comparison.baseline else None,
        "primary": comparison.primary,
        "metrics": {name: metric.higher_is_better for name, metric in comparison.metrics.items()},
        "figures": drawn,
        "examples": [_example(example) for example in comparison.examples.values()],
        "entries": [_outputs(entry, list(comparison.examples)) for entry in comparison.entries],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "question": example.question,
        "answer": example.answer,
        "aliases": list(example.aliases),
        "tags": [str(value) for key in ("topic", "answer_type") if (value := example.metadata.get(key))],
    }


def _outputs(entry: Entry, examples: Sequence[str]) -> dict[str, Any]:
    """Outputs of the first seed in the order of the examples; scores are averages over seeds."""
    scores = {metric: entry.scores(metric) for metric in entry.metrics}
    return {
        "name": entry.name,
        "oracle": entry.oracle,
        "control": entry.control,
        "outputs": [_output(entry.first.selected.get(example), example, scores) for example in examples],
    }


def _output(
    selected: Selected | None, example: str, scores: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    if selected is None:
        return None
    generation = selected.record.generation
    return {
        "text": generation.text,
        "parameters": {name: round(value, 5) for name, value in generation.parameters.items()},
        "degenerate": is_degenerate(generation.text),
        "scores": {metric: round(column[example], 4) for metric, column in scores.items() if example in column},
    }


def _bar(comparison: Comparison, entries: Sequence[Entry], name: str, estimate: Estimate) -> dict[str, float] | None:
    """Where an interval lies between the lowest and highest end in its column, in percent."""
    metric = comparison.metrics[name]
    column = [comparison.estimates[entry.name].get(name) for entry in entries]
    ends = [on_scale(metric, end) for item in column if item for end in (item.low, item.high) if end is not None]
    if estimate.low is None or estimate.high is None or estimate.value is None or max(ends) == min(ends):
        return None
    low, high = min(ends), max(ends)
    left, right, middle = (
        100 * (on_scale(metric, value) - low) / (high - low) for value in (estimate.low, estimate.high, estimate.value)
    )
    return {"left": left, "width": max(right - left, 0.8), "middle": middle}


def _size(value: Any) -> str:
    """A count or a size in a form that can be read."""
    if not isinstance(value, (int, float)):
        return "—" if value is None else str(value)
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:g}"


def contrasts_of(comparison: Comparison, kind: str, oracle: bool) -> list[Contrast]:
    """The contrasts of one kind and access on the headline metrics; controls are held against nothing."""
    names = {entry.name for entry in comparison.side(oracle) if not entry.control}
    contrasts = [item for item in comparison.contrasts if item.kind == kind and item.ours in names]
    return [contrast for contrast in contrasts if contrast.difference.metric in comparison.headline]
