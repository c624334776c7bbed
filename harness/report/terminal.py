"""The comparison as tables in the terminal: deployable and oracle entries never share one."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.report.compare import Comparison, Contrast
from harness.report.curves import Steerability, steerability
from harness.report.entries import Entry
from harness.report.expect import Claim
from harness.report.summary import summary
from harness.report.wording import estimate_text, is_doubtful, metric_label, p_text, signed

_TITLES = {"baseline": "Against the baseline", "control": "Against the controls", "methods": "Method against method"}


def print_comparison(comparison: Comparison, claims: Sequence[Claim], console: Console) -> None:
    """Print leaderboards, tested differences, failed runs and published values."""
    console.rule(f"[bold]{escape(comparison.title)}[/] · {len(comparison.examples)} examples")
    for title, entries in (("Deployable", comparison.deployable), ("Oracle (saw the gold answer)", comparison.oracles)):
        if entries:
            console.print(leaderboard(comparison, title, entries))
    for kind, title in _TITLES.items():
        contrasts = [c for c in comparison.contrasts if c.kind == kind and c.p_holm is not None]
        if contrasts:
            console.print(contrast_table(title, contrasts, with_power=console.width >= 100))
    if found := steerability(comparison):
        console.print(steerability_table(found))
    if claims:
        console.print(claim_table(claims))
    for finding in summary(comparison):
        subject = f"[bold]{escape(finding.subject)}[/] " if finding.subject else ""
        console.print(f"• {subject}{escape(finding.text)}", highlight=False)
    for failure in comparison.failures:
        console.print(f"[bold red]not counted[/] {escape(failure.name)}: {escape(failure.reason)}", highlight=False)


def leaderboard(comparison: Comparison, title: str, entries: Sequence[Entry]) -> Table:
    """Headline metrics with 95 % intervals; † marks one that a search optimised knowing the gold."""
    table = _table(title)
    words = [word for entry in entries for word in entry.name.split()]
    table.add_column("", overflow="fold", min_width=min(12, max(map(len, words), default=0)))
    for name in comparison.headline:
        doubt = " ‡" if is_doubtful(comparison.calibration(name)) else ""
        table.add_column(metric_label(comparison.metrics[name]) + doubt, justify="right", no_wrap=True)
    for entry in entries:
        cells = []
        for name in comparison.headline:
            mark = " †" if name in entry.optimised_metrics else ""
            cells.append(estimate_text(comparison.estimates[entry.name].get(name)) + mark)
        table.add_row(escape(entry.name), *cells)
    if any(entry.optimised_metrics for entry in entries):
        table.caption = "† optimised by a search that knew the gold answers of these examples"
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def contrast_table(title: str, contrasts: Sequence[Contrast], with_power: bool = True) -> Table:
    """Paired differences with intervals, corrected p-values, examples gained and lost; bold ones stand."""
    table = _table(title)
    table.add_column("", overflow="fold", min_width=20)
    for name in ("metric", "difference [95 %]", "p (Holm)", "+/−", *(["detectable"] if with_power else [])):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    previous = ""
    for item in contrasts:
        gap, pair = item.difference, f"{item.ours} − {item.theirs}"
        cells = [gap.metric, signed(gap), p_text(item), f"{len(gap.gained)}/{len(gap.lost)}"]
        cells += ["" if item.detectable is None else f"{item.detectable:.2g}"] if with_power else []
        style = "bold" if item.significant else None
        table.add_row(escape(pair) if pair != previous else "", *cells, style=style)
        previous = pair
    return table


def steerability_table(found: Sequence[Steerability]) -> Table:
    """How single examples follow the strength."""
    table = _table("Steerability")
    table.add_column("", overflow="fold")
    for name in ("metric", "slope per unit of strength", "anti-steerable"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for item in found:
        table.add_row(escape(item.method), item.metric, estimate_text(item.slope), estimate_text(item.anti_steerable))
    return table


def claim_table(claims: Sequence[Claim]) -> Table:
    """Published values beside ours."""
    table = _table("Published values")
    for name in ("run", "metric", "published", "ours", "verdict", "source"):
        table.add_column(name)
    colours = {"inside": "green", "outside": "red", "missing": "yellow"}
    for claim in claims:
        table.add_row(
            escape(claim.label), claim.metric, f"{claim.published:g} ± {claim.tolerance:g}",
            "—" if claim.ours is None else f"{claim.ours:.4g}",
            f"[{colours[claim.verdict]}]{claim.verdict}[/]", escape(claim.note or claim.source),
        )  # fmt: skip
    return table
