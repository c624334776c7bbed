"""The first screen: one sentence, one row for every method, and how far the judge can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.report.audit import SMALLEST_AUDIT
from harness.report.claims import Claim, Verdict
from harness.report.compare import Comparison
from harness.report.contrasts import CEILINGS
from harness.report.entries import Entry
from harness.report.wording import joined, trust_text, verdict_text

SIDES = {False: "Deployable", True: "Oracle (saw the answers)"}


class Row(NamedTuple):
    """One line of the forest plot.

    Args:
        entry: name of the method, or of a ceiling.
        opponent: whom its gain is over: the fairest opponent, in a word.
        gain: value, low and high on the metric's scale, above 0 is better; None if there is nothing to compare with.
        verdict: what was found; "ceiling" for what is shown for scale alone.
        text: the verdict in words.
    """

    entry: str
    opponent: str
    gain: tuple[float, float | None, float | None] | None
    verdict: Verdict | Literal["ceiling"]
    text: str


def forest(comparison: Comparison, oracle: bool) -> list[Row]:
    """The gain of every method of one access over its fairest opponent, in reading order; ceilings last."""
    claims = [claim for claim in comparison.claims if claim.oracle == oracle]
    ceilings = [entry for entry in comparison.side(oracle) if entry.control in CEILINGS]
    return [*(_row(comparison, claim) for claim in claims), *_ceiling_rows(comparison, ceilings)]


def _row(comparison: Comparison, claim: Claim) -> Row:
    fairest = claim.fairest
    if fairest is None:
        return Row(claim.method, "", None, claim.verdict, verdict_text(claim))
    opponent = comparison.entry(fairest.theirs)
    return Row(
        claim.method, opponent.control or opponent.name, fairest.difference.gain, claim.verdict, verdict_text(claim)
    )


def _ceiling_rows(comparison: Comparison, ceilings: Sequence[Entry]) -> list[Row]:
    rows = []
    for entry in ceilings:
        contrast = comparison.against_baseline(entry, comparison.primary)
        if contrast is not None:
            rows.append(Row(entry.name, contrast.theirs, contrast.difference.gain, "ceiling", "ceiling, not tested"))
    return rows


def answer(comparison: Comparison) -> str:
    """The comparison in one sentence; every word follows from a test."""
    if not comparison.entries:
        return "No run can be counted."
    if not comparison.claims:
        number = comparison.num_units
        return f"{number} {_items(comparison)} were answered, and no method was run that could claim anything."
    sides = [_side(comparison, oracle) for oracle in (False, True)]
    statements = "; ".join(filter(None, sides))
    return f"On {comparison.num_units} {_items(comparison)}, in “{comparison.primary}”: {statements}."


def _items(comparison: Comparison) -> str:
    return "questions" if comparison.num_units == len(comparison.examples) else "clusters of questions"


def _side(comparison: Comparison, oracle: bool) -> str:
    claims = [claim for claim in comparison.claims if claim.oracle == oracle]
    if not claims:
        return ""

    better, worse = ([claim.method for claim in claims if claim.verdict == word] for word in ("better", "worse"))
    tested = [claim for claim in claims if not claim.untested]
    who = "of the oracles, which saw the answers, " if oracle else ""
    if not tested:
        return f"{who}{'none' if oracle else 'no deployable method'} could be tested ({claims[0].untested})"

    opponents = "the un-steered model" + (" and its controls" if _has_controls(tested) else "")
    if better:
        sentence = f"{who}{joined(better)} {'is' if len(better) == 1 else 'are'} better than {opponents}"
    else:
        sentence = f"{who}{'none' if oracle else 'no deployable method'} is shown to be better than {opponents}"

    if worse:
        sentence += f", {joined(worse)} {'is' if len(worse) == 1 else 'are'} worse"
    return sentence + _could_have_seen([claim for claim in tested if claim.verdict == "not settled"])


def _has_controls(claims: Sequence[Claim]) -> bool:
    return any(contrast.kind == "control" for claim in claims for contrast in claim.opponents)


def _could_have_seen(claims: Sequence[Claim]) -> str:
    """What gain this number of questions would have shown, from the claims that are open."""
    effects = [claim.detectable for claim in claims if claim.detectable is not None]
    if not effects:
        return ""
    low, high = (f"{effect:+.2g}" for effect in (min(effects), max(effects)))
    size = low if low == high else f"{low} to {high}"
    return f" (could have seen {size})"


def trust(comparison: Comparison) -> str:
    """How far the primary metric can be trusted: who graded, how well, and what its intervals leave out."""
    calibration = comparison.calibration(comparison.primary)
    if calibration is None:
        return f"{comparison.primary} is computed, not judged."
    return f"Graded by {trust_text(calibration)}. {_error_held(comparison, calibration)}"


def _error_held(comparison: Comparison, calibration: Mapping[str, object]) -> str:
    """Whether intervals hold the judge's error beside that of sampling."""
    counts = [
        correction.num_audited
        for entry in comparison.entries
        if (correction := comparison.correction(entry, comparison.primary)) is not None
    ]

    if counts:
        auditor = calibration.get("audited_by")
        name = auditor.get("judge", "a second judge") if isinstance(auditor, Mapping) else "a second judge"
        graded = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return (
            f"{graded} units per entry were graded by {name} too: the corrected mean's interval holds judge error; "
            "gains and tests hold sampling error only."
        )

    graded = any(run.audits.get(comparison.primary) for entry in comparison.entries for run in entry.runs)
    why = f"a second judge graded fewer than {SMALLEST_AUDIT}" if graded else "no second judge graded a sample"
    return f"Intervals hold sampling error only: {why}."
