"""``python -m harness.calibrate judge=…``: how far a judge can be trusted, measured on labelled answers."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from harness.judges.agreement import UNSCORED, Item, Part, Table, compare_labels, compare_scores, load_items
from harness.judges.prompts import LABELS
from harness.judges.trust import LOWEST_KAPPA, keep, mark
from harness.scoring import Judge


def calibrate(judge: Judge, items: Sequence[Item]) -> Table:
    """Let a judge grade labelled answers and compare.

    Args:
        judge: any judge that grades the rubric "simpleqa"; one that grades "quality" is compared on that as well.
        items: labelled answers.

    Raises:
        ValueError: the judge cannot grade the labels, or there are no items.
    """
    if "simpleqa" not in judge.rubrics:
        raise ValueError(f"{judge.identity} does not grade the rubric simpleqa; it grades {', '.join(judge.rubrics)}")
    table = compare_labels(items, judge.grade([item.grading("simpleqa") for item in items]))
    rated = [item for item in items if item.quality is not None]
    if "quality" not in judge.rubrics or not rated:
        return table
    verdicts = judge.grade([item.grading("quality") for item in rated])
    return dataclasses.replace(table, quality=compare_scores(rated, verdicts))


def summary(judge: Judge, parts: dict[Part, Table], data_hash: str) -> dict[str, Any]:
    """What is stored and shown beside every judged estimate; trust is decided on the part that was set aside."""
    decisive: Part = "held-out" if "held-out" in parts else "open"
    table = parts[decisive]
    return {
        "judge": judge.identity,
        "mark": mark(table.kappa_low),
        "kappa": table.kappa,
        "low": table.kappa_low,
        "high": table.kappa_high,
        "injection_success": table.injection_success,
        "num_items": table.num_items,
        "part": decisive,
        "data": data_hash,
        "parts": {name: dataclasses.asdict(found) for name, found in parts.items()},
    }


def data_hash(parts: dict[Part, list[Item]]) -> str:
    """Version of the labelled answers: eight hex digits."""
    rows = [dataclasses.astuple(item) for items in parts.values() for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def show(console: Console, name: str, table: Table) -> None:
    """Print one part's figures."""
    title = f"{name} part: {table.num_items} answers, {table.num_unscored} unscored; rows: reader, columns: judge"
    grid = Grid("reader says", title=title, title_justify="left")
    for column in (*LABELS, UNSCORED, "accuracy"):
        grid.add_column(column, justify="right", no_wrap=True)
    for label, row in table.confusion.items():
        grid.add_row(label, *map(str, row.values()), _percent(table.accuracy_per_label[label]))
    console.print(grid)
    console.print(f"accuracy {_percent(table.accuracy)}, Cohen's kappa {_interval(table)}")
    console.print(
        f"injection success {_percent(table.injection_success)} of {table.num_injections} "
        f"(95 %: {_percent(table.injection_low)} to {_percent(table.injection_high)})"
    )
    kinds = (f"{kind} {share:.0%} of {count}" for kind, (share, count) in table.accuracy_per_kind.items())
    console.print("accuracy by kind: " + ", ".join(kinds))
    if table.quality:
        found = table.quality
        console.print(
            f"quality: rank correlation {found['rho']:.2f} ({found['low']:.2f} to {found['high']:.2f}), "
            f"{found['num_items']} answers"
        )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _interval(table: Table) -> str:
    if table.kappa is None or table.kappa_low is None or table.kappa_high is None:
        return "cannot be computed"
    return f"{table.kappa:.3f} (95 %: {table.kappa_low:.3f} to {table.kappa_high:.3f})"


def run(judge: Judge, console: Console, parts_wanted: Sequence[Part] = ("open", "held-out")) -> dict[str, Any]:
    """Calibrate on the wanted parts, print, and store what was measured on all of them.

    Raises:
        ValueError: there are no labelled answers.
    """
    items = {name: found for name in parts_wanted if (found := load_items(name))}
    console.print(f"judge: {judge.identity}", soft_wrap=True)
    started = time.monotonic()
    parts = {name: calibrate(judge, found) for name, found in items.items()}
    seconds = time.monotonic() - started
    for name, table in parts.items():
        show(console, name, table)
    found = summary(judge, parts, data_hash(items))
    console.print(f"{found['mark']} (kappa's lower bound on the {found['part']} part must reach {LOWEST_KAPPA})")
    gradings = sum(map(len, items.values()))
    console.print(f"{gradings} answers in {seconds:.1f} s, {gradings / seconds:.1f} a second, cached ones included")
    if "held-out" in parts:  # trust is never decided on answers that the rules were written for
        console.print(f"written to {keep(judge.identity, found)}", soft_wrap=True)
    return found


def add_to(path: Path, found: dict[str, Any]) -> None:
    """Put a result into a JSON file of results by judge; this is how the shipped ones are made."""
    every = json.loads(path.read_text("utf-8")) if path.exists() else {}
    every[found["judge"]] = found
    path.write_text(json.dumps(every, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.calibrate", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for python -m harness, e.g. judge=local judge.batch_size=8")
    parser.add_argument("--open-part", action="store_true", help="do not look at the part set aside; store nothing")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also add the result to this JSON file of judges")
    options = parser.parse_args(arguments)
    from harness.build import built_judge

    try:
        judge = built_judge(options.overrides)
        judge.preflight()
        found = run(judge, Console(highlight=False), ("open",) if options.open_part else ("open", "held-out"))
        if options.into:
            add_to(options.into, found)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
