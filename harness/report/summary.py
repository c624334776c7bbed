"""The comparison in words, at length. Every sentence follows from a test or an interval, none from a bare mean."""

from __future__ import annotations

from typing import NamedTuple

from harness.report.answer import SIDES
from harness.report.claims import ALPHA, Claim
from harness.report.compare import Comparison
from harness.report.contrasts import Contrast
from harness.report.wording import corrected_text, is_doubtful, joined, p_text, signed, trust_text, verdict_text

_PAIRS_NAMED = 8


class Finding(NamedTuple):
    """One paragraph of the summary: whom it is about ("" for the whole comparison) and what is said."""

    subject: str
    text: str


def summary(comparison: Comparison) -> list[Finding]:
    """The comparison in sentences: what was compared, each method's result, method against method, cautions."""
    cautions = [notice.text for notice in comparison.notices] + _doubtful_judges(comparison)
    return [
        Finding("", _opening(comparison)),
        *(Finding(claim.method, _finding_text(comparison, claim)) for claim in comparison.claims),
        *(finding for oracle in SIDES for finding in _between_methods(comparison, oracle)),
        *(Finding("Caution", text) for text in cautions),
    ]


def _opening(comparison: Comparison) -> str:
    parts = [f"{len(comparison.entries)} entries answered the same {len(comparison.examples)} examples"]
    if comparison.num_units < len(comparison.examples):
        parts[0] += f", which make {comparison.num_units} independent units; these are averaged before any test"

    seeds = max((len(entry.runs) for entry in comparison.entries), default=0)
    if seeds > 1:
        parts[0] += f" ({seeds} seeds, combined by example)"

    if any(not claim.untested for claim in comparison.claims):
        parts.append(
            f"One metric is tested, {comparison.primary}: is a method better than the un-steered model and than every "
            "control of its own? The p-value of that claim is the largest of its tests, corrected over the methods "
            "(Holm, 5 %), for deployable ones and oracles apart. “Not settled” means that the data do not settle it, "
            "not that there is no difference"
        )

    if comparison.failures:
        parts.append(f"{len(comparison.failures)} run{'s are' if len(comparison.failures) > 1 else ' is'} not counted")
    return ". ".join(parts) + "."


def _finding_text(comparison: Comparison, claim: Claim) -> str:
    """A method's claim, whom it is held against, and what else changed."""
    kind = "Oracle: it saw the gold answers." if claim.oracle else "Deployable."
    against = "; ".join(f"{signed(item.difference)} over {_opponent(comparison, item)}" for item in claim.opponents)
    sentences = [kind]
    if against:
        sentences.append(f"{comparison.primary}: {against}.")
    tested = "" if claim.p_holm is None else f" (p {_relation(claim.p)}, after Holm {_relation(claim.p_holm)})"
    sentences.append(f"{verdict_text(claim).capitalize()}{tested}.")
    return " ".join(
        [*sentences, _corrected(claim), _made_worse(comparison, claim), _elsewhere(comparison, claim)]
    ).strip()


def _corrected(claim: Claim) -> str:
    """The gain over the fairest opponent as the second judge would have seen it; not tested."""
    fairest = claim.fairest
    if fairest is None or fairest.corrected is None:
        return ""
    return (
        f"As a second judge's {fairest.corrected.num_audited} grades move it, not tested: "
        f"{fairest.difference.metric} {corrected_text(fairest.corrected)} higher than {fairest.theirs}'s."
    )


def _opponent(comparison: Comparison, contrast: Contrast) -> str:
    return f"its control {comparison.entry(contrast.theirs).control}" if contrast.kind == "control" else contrast.theirs


def _made_worse(comparison: Comparison, claim: Claim) -> str:
    contrast = comparison.against_baseline(comparison.entry(claim.method), comparison.primary)
    if contrast is None or contrast not in claim.opponents:
        return ""
    return f"Made worse than un-steered: {contrast.difference.share_worse:.0%}."


def _elsewhere(comparison: Comparison, claim: Claim) -> str:
    """The other headline metrics against the baseline: intervals, no tests."""
    entry = comparison.entry(claim.method)
    others = [comparison.against_baseline(entry, name) for name in comparison.headline if name != comparison.primary]
    differences = [f"{item.difference.metric} {signed(item.difference)}" for item in others if item is not None]
    return f"Against un-steered, not tested: {'; '.join(differences)}." if differences else ""


def _doubtful_judges(comparison: Comparison) -> list[str]:
    """One sentence per judge whose figures are not to be relied on."""
    metrics_of: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        calibration = comparison.calibration(metric)
        if calibration is not None and is_doubtful(calibration):
            metrics_of.setdefault(trust_text(calibration), []).append(metric)
    return [f"‡ {joined(metrics)}: graded by {judge}." for judge, metrics in metrics_of.items()]


def _between_methods(comparison: Comparison, oracle: bool) -> list[Finding]:
    """Pairs of methods that were tested: those with a difference one by one, the others in one sentence."""
    names = {entry.name for entry in comparison.side(oracle)}
    tested = [c for c in comparison.contrasts if c.kind == "methods" and c.p_holm is not None and c.ours in names]
    mark = " (exploratory)" if any(contrast.exploratory for contrast in tested) else ""
    settled = [contrast for contrast in tested if contrast.p_holm is not None and contrast.p_holm <= ALPHA]
    findings = [
        Finding(f"{item.ours} against {item.theirs}{mark}", f"{_better(item)} ({signed(item.difference)}, p "
                f"{_relation(item.p_holm)} after Holm over {len(tested)} pairs).")
        for item in settled
    ]  # fmt: skip
    if pairs := [f"{item.ours} against {item.theirs}" for item in tested if item not in settled]:
        named = "; ".join(pairs) if len(pairs) <= _PAIRS_NAMED else f"{len(pairs)} of {len(tested)} pairs"
        findings.append(Finding(f"Methods, not settled{mark}", f"{named}."))
    return findings


def _better(contrast: Contrast) -> str:
    better = contrast.ours if contrast.difference.gain[0] > 0 else contrast.theirs
    return f"{contrast.difference.metric}: {better} is better"


def _relation(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"
