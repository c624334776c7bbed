"""What the figures say in plain words. Every sentence follows from a test or an interval, none from a bare mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.report.compare import Comparison, Contrast
from harness.report.entries import Entry
from harness.report.wording import is_doubtful, p_text, signed, trust_text

_PAIRS_NAMED = 8


class Finding(NamedTuple):
    """One paragraph of the summary: whom it is about ("" for the whole comparison) and what is said."""

    subject: str
    text: str


def summary(comparison: Comparison) -> list[Finding]:
    """The comparison in sentences: what was compared, each method's result, method against method, cautions."""
    methods = [entry for entry in comparison.entries if not entry.control and not entry.is_baseline]
    return [
        Finding("", _opening(comparison)),
        *(Finding(entry.name, text) for entry in methods if (text := _about_method(comparison, entry))),
        *_between_methods(comparison),
        *(Finding("Caution", notice) for notice in (*comparison.notices, *_doubtful_judges(comparison))),
    ]


def _opening(comparison: Comparison) -> str:
    tested = sum(contrast.p_holm is not None for contrast in comparison.contrasts)
    seeds = max((len(entry.runs) for entry in comparison.entries), default=0)
    parts = [f"{len(comparison.entries)} entries answered the same {len(comparison.examples)} examples"]
    if seeds > 1:
        parts[0] += f" ({seeds} seeds, combined by example)"
    if tested:
        parts.append(
            f"{tested} differences in {_and(comparison.headline)} were tested and corrected together (Holm, 5 %); "
            "“undecided” means that the data do not settle it, not that there is no difference"
        )
    if comparison.failures:
        parts.append(f"{len(comparison.failures)} run{'s are' if len(comparison.failures) > 1 else ' is'} not counted")
    return ". ".join(parts) + "."


def _about_method(comparison: Comparison, entry: Entry) -> str:
    """What was found against baseline and controls; "" if nothing was tested."""
    contrasts = [c for c in comparison.contrasts if c.ours == entry.name and not c.untested and c.kind != "methods"]
    if not contrasts:
        return ""
    kind = "Oracle: it saw the gold answers." if entry.oracle else "Deployable."
    said = [f"{clause[0].upper()}{clause[1:]}." for clause in _by_outcome(comparison, contrasts)]
    return " ".join([kind, *said, _made_worse(comparison, entry)]).strip()


def _by_outcome(comparison: Comparison, contrasts: Sequence[Contrast]) -> list[str]:
    """One clause per metric, naming opponents by outcome: "correct: better than baseline (+0.1 […]) and random"."""
    clauses = []
    for metric in dict.fromkeys(contrast.difference.metric for contrast in contrasts):
        mine = [contrast for contrast in contrasts if contrast.difference.metric == metric]
        better = [c for c in mine if c.significant and is_better(comparison, c)]
        worse = [c for c in mine if c.significant and not is_better(comparison, c)]
        open_ = [c for c in mine if not c.significant]
        groups = (("better than", better), ("worse than", worse), ("undecided against", open_))
        said = [f"{word} {_opponents(comparison, group)}" for word, group in groups if group]
        clauses.append(f"{metric}: {'; '.join(said)}")
    return clauses


def is_better(comparison: Comparison, contrast: Contrast) -> bool:
    """Whether the difference lies on the metric's better side."""
    return (contrast.difference.value > 0) == comparison.metrics[contrast.difference.metric].higher_is_better


def _opponents(comparison: Comparison, contrasts: Sequence[Contrast]) -> str:
    """The baseline with the difference to it; a method's controls by their names."""
    said = [f"{c.theirs} ({signed(c.difference)})" for c in contrasts if c.kind != "control"]
    controls = [comparison.entry(c.theirs).control for c in contrasts if c.kind == "control"]
    if controls:
        said.append(f"its control{'s' if len(controls) > 1 else ''} {_and(controls)}")
    return " and ".join(said)


def _and(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _made_worse(comparison: Comparison, entry: Entry) -> str:
    shares = []
    for metric in (name for name in comparison.headline if comparison.metrics[name].higher_is_better):
        contrast = comparison.against_baseline(entry, metric)
        if contrast is not None and not contrast.untested:
            shares.append(f"{contrast.difference.share_worse:.0%} on {metric}")
    return f"Examples made worse than un-steered: {_and(shares)}." if shares else ""


def _doubtful_judges(comparison: Comparison) -> list[str]:
    """One sentence per judge whose figures are not to be relied on."""
    found: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        calibration = comparison.calibration(metric)
        if calibration is not None and is_doubtful(calibration):
            found.setdefault(trust_text(calibration), []).append(metric)
    return [f"‡ {_and(metrics)}: graded by {said}." for said, metrics in found.items()]


def _between_methods(comparison: Comparison) -> list[Finding]:
    """Pairs with a difference that stands, one by one; the others in one sentence."""
    contrasts = [c for c in comparison.contrasts if c.kind == "methods" and not c.untested]
    found, open_ = [], []
    for ours, theirs in dict.fromkeys((contrast.ours, contrast.theirs) for contrast in contrasts):
        mine = [contrast for contrast in contrasts if (contrast.ours, contrast.theirs) == (ours, theirs)]
        if any(contrast.significant for contrast in mine):
            found.append(Finding(f"{ours} against {theirs}", _verdict(comparison, mine)))
        else:
            open_.append(f"{ours} against {theirs}")
    if open_:
        pairs = "; ".join(open_) if len(open_) <= _PAIRS_NAMED else f"{len(open_)} of {len(open_) + len(found)} pairs"
        found.append(Finding("Undecided on every tested metric", f"{pairs}."))
    return found


def _verdict(comparison: Comparison, contrasts: Sequence[Contrast]) -> str:
    clauses = []
    for contrast in contrasts:
        word = "better" if is_better(comparison, contrast) else "worse"
        figures = f" ({signed(contrast.difference)}, p {_relation(contrast)})" if contrast.significant else ""
        clauses.append(f"{contrast.difference.metric} {word if contrast.significant else 'undecided'}{figures}")
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _relation(contrast: Contrast) -> str:
    text = p_text(contrast)
    return text if text.startswith("<") else f"= {text}"
