"""The comparison in the terminal: the answer on one screen, and everything behind it where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from harness.records.run import printable
from harness.report.answer import SIDES, Row, answer, forest, trust
from harness.report.claims import Claim
from harness.report.compare import Comparison
from harness.report.contrasts import Contrast
from harness.report.curves import Steerability, steerability
from harness.report.entries import Entry
from harness.report.expect import Published
from harness.report.summary import summary
from harness.report.wording import (
    corrected_text,
    estimate_text,
    gain_text,
    is_doubtful,
    joined,
    metric_label,
    number,
    p_text,
    signed,
)

_KINDS = {
    "baseline": "the un-steered model",
    "control": "controls",
    "ceiling": "what could be reached",
    "methods": "other methods",
}
_COLOURS = {"better": "green", "worse": "red", "ceiling": "dim", "not tested": "yellow"}
_FAILURES_NAMED = 3
_SETTINGS_NAMED = 4
_LAYOUTS = (
    ("interval", "others", "gain", "drawing"),
    ("interval", "others", "gain"),
    ("others", "gain"),
    ("gain",),
    (),
)
"""What the table of answers shows besides name, score, gain and verdict: the interval of the score, other metrics, the
interval of the gain, the gain drawn as a line. The first layout that fits is taken."""


def print_comparison(
    comparison: Comparison, published: Sequence[Published], console: Console, *, explain: bool = False
) -> None:
    """Print the answer: one sentence, one line per method, cautions in a few words.

    Args:
        comparison: what was compared.
        published: published values beside ours.
        console: where to print.
        explain: print all tables, and the whole in words, as well.
    """
    console.rule(f"[bold]{escape(comparison.title)}[/] · {len(comparison.examples)} examples")
    console.print(escape(answer(comparison)), highlight=False)

    if comparison.entries:
        layout = _layout(comparison, console)
        console.print()
        console.print(answer_table(comparison, layout))
        shown = comparison.headline if "others" in layout else (comparison.primary,)
        for line in _footnotes(comparison, shown):
            console.print(escape(line), style="dim", highlight=False)

    if explain:
        _explain(comparison, console)
    if published:
        console.print(published_table(published))
    for line in _failures(comparison):
        console.print(f"[bold red]not counted[/] {escape(line)}", highlight=False, soft_wrap=True)


def print_paths(paths: Sequence[Path], console: Console, *, explain: bool) -> None:
    """Say what was written, and where the rest of the answer is."""
    folder = paths[0].parent
    page = next(path for path in paths if path.suffix == ".html")
    others = dict.fromkeys(path.relative_to(folder).parts[0] for path in paths if path != page)
    lines = [f"wrote {page} (and {', '.join(others)})"]
    if not explain:
        lines.append("more: python -m harness.compare with the same runs and --explain")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _layout(comparison: Comparison, console: Console) -> Sequence[str]:
    """The richest layout of the answers that fits; names fold where even the poorest does not."""
    room = console.options.update_width(10_000)
    for layout in _LAYOUTS:
        if Measurement.get(console, room, answer_table(comparison, layout)).maximum <= console.width:
            return layout
    return _LAYOUTS[-1]


def answer_table(comparison: Comparison, layout: Sequence[str]) -> Table:
    """Every method with its score, its gain over its fairest opponent and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    others = [name for name in comparison.headline if name != comparison.primary] if "others" in layout else []
    _name_column(table, [entry.name for entry in comparison.entries])
    doubt = " ‡" if is_doubtful(comparison.calibration(comparison.primary)) else ""
    is_corrected = comparison.is_corrected(comparison.primary)
    own = [metric_label(comparison.metrics[comparison.primary]) + doubt, *(["corrected"] if is_corrected else [])]
    columns = [*own, *others, "gain", "over", "verdict"]
    for header in [*columns, *(["−        0        +"] if "drawing" in layout else [])]:
        table.add_column(header, justify="left" if header in ("over", "verdict") else "right", no_wrap=True)

    for oracle in SIDES:
        rows = {row.entry: row for row in forest(comparison, oracle)}
        shown = [entry for entry in comparison.side(oracle) if not entry.control or entry.name in rows]
        if shown:
            table.add_row("[bold]Oracle[/]" if oracle else "[bold]Deployable[/]")
        for entry in shown:
            cells = [_score(comparison, entry, comparison.primary, interval="interval" in layout)]
            if is_corrected:
                cells.append(corrected_text(comparison.correction(entry, comparison.primary)))
            cells += [_score(comparison, entry, name, interval=False) for name in others]
            cells += _verdict_cells(comparison, rows.get(entry.name), layout, list(rows.values()))
            table.add_row(f" {escape(entry.name)}", *cells)
    return table


def _name_column(table: Table, names: Sequence[str]) -> None:
    """Names are never cut: they fold between words where there is no room."""
    longest = max((len(word) for name in names for word in name.split()), default=0)
    table.add_column("", overflow="fold", min_width=min(18, longest + 1))


def _score(comparison: Comparison, entry: Entry, name: str, *, interval: bool) -> str:
    """A metric's value with its marks, and the share of a metric that must be read with it."""
    estimate = comparison.estimates[entry.name].get(name)
    if estimate is None or estimate.value is None:
        return "—"
    text = estimate_text(estimate) if interval else number(estimate.value)
    beside = comparison.estimates[entry.name].get(comparison.metrics[name].beside)
    if beside is not None and beside.value:
        text += f", {beside.value:.0%} {beside.metric}"
    return text + (" †" if name in entry.optimised_metrics else "")


def _reasons_without_tests(comparison: Comparison) -> Iterator[str]:
    """Why methods were not tested, where the answer's sentence does not say it: it does where none of a side was."""
    for oracle in (False, True):
        claims = [claim for claim in comparison.claims if claim.oracle == oracle]
        if all(claim.untested for claim in claims):
            continue
        methods_by_reason: dict[str, list[str]] = {}
        for claim in claims:
            if claim.untested:
                methods_by_reason.setdefault(claim.untested, []).append(claim.method)
        for reason, methods in methods_by_reason.items():
            yield f"not tested: {joined(methods)}: {reason}"


def _verdict_cells(comparison: Comparison, row: Row | None, layout: Sequence[str], rows: Sequence[Row]) -> list[str]:
    if row is None:
        return []
    is_ratio = comparison.metrics[comparison.primary].kind == "geometric"
    style = _COLOURS.get(row.verdict, "default")
    # why a method was not tested is a sentence: it stands below the table, where it pushes nothing off the screen
    words = row.verdict if row.verdict == "not tested" else row.text
    verdict = f"[{style}]{escape(words)}[/]"
    if row.gain is None:
        return ["—", "—", verdict]
    gain = gain_text(row.gain, is_ratio)
    gain = gain if "gain" in layout else gain.split(" ")[0]
    drawing = [f"[{style}]{_drawn(row, rows)}[/]"] if "drawing" in layout else []
    return [gain, escape(row.opponent), verdict, *drawing]


def _drawn(row: Row, rows: Sequence[Row], half: int = 9) -> str:
    """An interval as a line of characters around 0, all rows on one scale."""
    ends = [abs(end) for other in rows if other.gain for end in other.gain if end is not None]
    scale = max(ends, default=0.0) or 1.0
    assert row.gain is not None
    value, low, high = (half if end is None else round(half * end / scale) for end in row.gain)
    low = -half if row.gain[1] is None else low
    line = [
        "●" if place == value else "─" if low <= place <= high else "┊" if place == 0 else " "
        for place in range(-half, half + 1)
    ]
    return "".join(line)


def _footnotes(comparison: Comparison, shown: Sequence[str]) -> Iterator[str]:
    """Who graded, what the marks of the metrics that are shown mean, and which cautions there are."""
    yield ("‡ " if is_doubtful(comparison.calibration(comparison.primary)) else "") + trust(comparison)

    marks = []
    if any(entry.optimised_metrics & set(shown) for entry in comparison.entries):
        marks.append("† optimised by a search that knew these answers")

    unscored = [
        f"{estimate.num_unscored} {name} of {entry}"
        for entry, estimates in comparison.estimates.items()
        for name, estimate in estimates.items()
        if name in shown and estimate.num_unscored
    ]
    if unscored:
        more = f" and {len(unscored) - 3} more" if len(unscored) > 3 else ""
        marks.append(f"unscored: {', '.join(unscored[:3])}{more}")

    if marks:
        yield "; ".join(marks)
    yield from _reasons_without_tests(comparison)

    settings = [f"{e.name}: {e.setting}" for e in comparison.entries if e.setting and not e.control]
    if settings:
        more = f"; {len(settings) - _SETTINGS_NAMED} more in the report" if len(settings) > _SETTINGS_NAMED else ""
        yield f"with {'; '.join(settings[:_SETTINGS_NAMED])}{more}"

    labels = list(dict.fromkeys(notice.label for notice in comparison.notices))
    if labels:
        yield f"caution: {'; '.join(labels)}"


def _failures(comparison: Comparison) -> Iterator[str]:
    for failure in comparison.failures[:_FAILURES_NAMED]:
        yield printable(f"{failure.name}: {failure.reason}")
    if len(comparison.failures) > _FAILURES_NAMED:
        yield f"and {len(comparison.failures) - _FAILURES_NAMED} more runs, see the report"


def _explain(comparison: Comparison, console: Console) -> None:
    """All tables, deployable and oracle entries apart, and the whole in words."""
    curves = steerability(comparison)
    for oracle, title in SIDES.items():
        entries = comparison.side(oracle)
        if entries:
            console.print(leaderboard(comparison, title, entries))

        claims = [claim for claim in comparison.claims if claim.oracle == oracle]
        if claims:
            console.print(claim_table(comparison, f"{title}: claims in {comparison.primary}", claims))

        names = {entry.name for entry in entries if not entry.control}
        for kind, opponents in _KINDS.items():
            contrasts = [item for item in comparison.contrasts if item.kind == kind and item.ours in names]
            shown = [item for item in contrasts if item.difference.metric in comparison.headline]
            if shown:
                console.print(contrast_table(f"{title}: against {opponents}", shown))

        if own := [item for item in curves if item.oracle == oracle]:
            console.print(steerability_table(f"{title}: steerability", own))

    for finding in summary(comparison):
        subject = f"[bold]{escape(finding.subject)}[/] " if finding.subject else ""
        console.print(f"• {subject}{escape(finding.text)}", highlight=False)


def leaderboard(comparison: Comparison, title: str, entries: Sequence[Entry]) -> Table:
    """Headline metrics with 95 % intervals, controls too."""
    table = _table(title)
    _name_column(table, [entry.name for entry in entries])
    for name in comparison.headline:
        doubt = " ‡" if is_doubtful(comparison.calibration(name)) else ""
        table.add_column(metric_label(comparison.metrics[name]) + doubt, justify="right")
    for entry in entries:
        cells = [_score(comparison, entry, name, interval=True) for name in comparison.headline]
        table.add_row(escape(entry.name), *cells)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def claim_table(comparison: Comparison, title: str, claims: Sequence[Claim]) -> Table:
    """Each method against each of its opponents on the primary metric, and what became of its claim."""
    table = _table(title)
    _name_column(table, [claim.method for claim in claims])
    for name in ("over", "difference [95 %]", "+/−", "p, one-sided", "claim, Holm", "could have seen"):
        table.add_column(name, justify="left" if name == "over" else "right", overflow="fold")

    for claim in claims:
        seen = "" if claim.detectable is None else f"{claim.detectable:+.2g}"
        for index, item in enumerate(claim.opponents):
            gap = item.difference
            opponent = comparison.entry(item.theirs)
            ends = [p_text(claim.p_holm), seen] if index == 0 else []
            counts = f"{len(gap.gained)}/{len(gap.lost)}"
            cells = [escape(opponent.control or opponent.name), signed(gap), counts, p_text(gap.p_better), *ends]
            table.add_row("" if index else escape(claim.method), *cells, style=_COLOURS.get(claim.verdict))

        if not claim.opponents:
            table.add_row(escape(claim.method), escape(claim.untested))
    return table


def contrast_table(title: str, contrasts: Sequence[Contrast]) -> Table:
    """Paired differences with intervals, examples gained and lost; p-values of two methods where they were tested."""
    table = _table(title)
    tested = any(item.p_holm is not None for item in contrasts)
    _name_column(table, [f"{item.ours} − {item.theirs}" for item in contrasts])
    for name in ("metric", "difference [95 %]", "+/−", *(["p (Holm)"] if tested else [])):
        table.add_column(name, justify="left" if name == "metric" else "right", overflow="fold")

    previous = ""
    for item in contrasts:
        gap, pair = item.difference, f"{item.ours} − {item.theirs}"
        cells = [gap.metric, signed(gap), f"{len(gap.gained)}/{len(gap.lost)}"]
        table.add_row(escape(pair) if pair != previous else "", *cells, *([p_text(item.p_holm)] if tested else []))
        previous = pair

    if any(item.exploratory for item in contrasts):
        table.caption = "exploratory: tested although not all of these methods' claims stand"
    return table


def steerability_table(title: str, measured: Sequence[Steerability]) -> Table:
    """How single examples follow the strength."""
    table = _table(title)
    table.add_column("", overflow="fold")
    for name in ("metric", "slope per unit of strength", "anti-steerable"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for item in measured:
        table.add_row(escape(item.method), item.metric, estimate_text(item.slope), estimate_text(item.anti_steerable))
    return table


def published_table(published: Sequence[Published]) -> Table:
    """Published values beside ours."""
    table = _table("Published values")
    for name in ("run", "metric", "published", "ours", "verdict", "source"):
        table.add_column(name)
    colours = {"inside": "green", "outside": "red", "missing": "yellow"}
    for value in published:
        table.add_row(
            escape(value.label) + (" (oracle)" if value.oracle else ""), value.metric,
            f"{value.published:g} ± {value.tolerance:g}", "—" if value.ours is None else f"{value.ours:.4g}",
            f"[{colours[value.verdict]}]{value.verdict}[/]", escape(value.note or value.source),
        )  # fmt: skip
    return table
