"""``python -m harness.calibrate judge=…``: how far a judge can be trusted, measured on labelled answers.

Without ``data=FILE`` on the answers that come with the harness. With it on a file of JSON Lines, each with
``question``, ``gold``, ``aliases``, ``answer`` and ``label`` (CORRECT, INCORRECT, NOT_ATTEMPTED) or ``correct`` (true,
false); rows that carry a ``source`` are measured by source. Rows with ``ratings`` in place of a label, which map
rubrics to one whole number per reader, measure how the judge rates texts, AxBench's for instance.
"""

from __future__ import annotations

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

from harness.commands.parser import OneLineParser
from harness.judges.agreement import (
    SETS,
    UNSCORED,
    Interval,
    Item,
    Part,
    Table,
    compare_labels,
    compare_scores,
    load_items,
    part_of,
    read_items,
)
from harness.judges.prompts import LABELS
from harness.judges.ratings import RatedText, RatingTable, compare_ratings, holds_ratings, read_rated
from harness.judges.trust import (
    LARGEST_ERROR_BY_LENGTH,
    LOWEST_KAPPA,
    check_shippable,
    keep,
    measured,
    rating_figures,
    set_figures,
    ship,
)
from harness.scoring import Judge

_PARTS: tuple[Part, ...] = ("open", "held-out")


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


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Labelled answers under the name that stands beside figures measured on them."""

    name: str
    items: Sequence[Item]
    hash: str
    is_decisive: bool
    """Whether figures on it are stored: not where rules were written while looking at it."""


def shipped_sets() -> list[LabelledSet]:
    """Both parts of the answers that come with the harness."""
    pairs = ((name, part, load_items(part, name)) for name in SETS for part in _PARTS)
    return [
        LabelledSet(f"{name} ({part})", items, items_hash(items), part == "held-out")
        for name, part, items in pairs
        if items
    ]


def sets_of_file(path: Path, part: Part | None = None, name: str = "") -> list[LabelledSet]:
    """A file's answers, by the source that its rows name.

    Args:
        path: JSON Lines.
        name: what the set is called, in front of the source; the file's own name if empty.
        part: only the questions of this part, as `part_of` splits them.

    Raises:
        ValueError: a row is not as it should be, or there is none.
    """
    items = read_items(path)
    rows = (json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip())
    by_source: dict[str, list[Item]] = {}
    for item, row in zip(items, rows, strict=True):
        if part is None or part_of(item.question) == part:
            by_source.setdefault(str(row.get("source", "")), []).append(item)

    if not by_source:
        raise ValueError(f"{path} holds no labelled answers{f' of the {part} part' if part else ''}")

    content = hashlib.sha256(path.read_bytes()).hexdigest()
    suffix = f" ({part})" if part else ""
    return [
        LabelledSet(f"{name or path.stem} {source}".strip() + suffix, items_of_source, content, part != "open")
        for source, items_of_source in sorted(by_source.items())
    ]


def items_hash(items: Sequence[Item]) -> str:
    """Version of labelled answers: SHA-256 in hex digits."""
    return hashlib.sha256(json.dumps([dataclasses.astuple(item) for item in items]).encode()).hexdigest()


def calibrate_ratings(judge: Judge, texts: Sequence[RatedText]) -> list[RatingTable]:
    """Let a judge rate texts that readers rated, by every rubric that they rated by.

    Raises:
        ValueError: the judge does not know a rubric, or scored no text by it.
    """
    rubrics = sorted(texts[0].ratings)
    if unknown := [rubric for rubric in rubrics if rubric not in judge.rubrics]:
        raise ValueError(
            f"{judge.identity} does not grade the rubric {unknown[0]}; it grades {', '.join(sorted(judge.rubrics))}"
        )
    verdicts = judge.grade([text.grading(rubric) for rubric in rubrics for text in texts])
    count = len(texts)
    return [
        compare_ratings(rubric, texts, verdicts[number * count : (number + 1) * count])
        for number, rubric in enumerate(rubrics)
    ]


def show_ratings(console: Console, name: str, tables: Sequence[RatingTable]) -> None:
    """Print what a judge's ratings came to, a row per rubric."""
    first = tables[0]
    size = f"{first.num_texts} texts to {first.num_questions} questions, {first.num_readers} readers"
    title = f"{name}: {size}; weighted kappa, rank correlation and error, 95 %"
    grid = Grid(title=title, title_justify="left")
    grid.add_column("rubric", no_wrap=True)
    for column in ("readers", "judge", "ranks", "error", "unscored"):
        grid.add_column(column, justify="right")
    for table in tables:
        between = "one reader" if table.readers is None else _short(table.readers)
        figures = [between, _short(table.judge), _short(table.ranks), _short(table.error, "+.2f")]
        grid.add_row(table.rubric, *figures, str(table.num_unscored))
    console.print(grid)

    for table in tables:
        given = (f"{rating}: {mean:.2f} of {count} texts" for rating, (mean, count) in table.means.items())
        console.print(f"{table.rubric}, readers' mean where the judge said " + ", ".join(given), soft_wrap=True)


def run_ratings(
    judge: Judge, console: Console, path: Path, texts: Sequence[RatedText], command: str = ""
) -> dict[str, dict[str, Any]]:
    """Measure a judge on the rated texts of a file, print, and store.

    Returns:
        The figures by rubric.

    Raises:
        ValueError: the judge cannot rate by the texts' rubrics.
    """
    console.print(f"judge: {judge.identity}", soft_wrap=True)
    tables = calibrate_ratings(judge, texts)
    show_ratings(console, path.stem, tables)

    content = hashlib.sha256(path.read_bytes()).hexdigest()
    figures = {table.rubric: rating_figures(table, content, command) for table in tables}
    stored = keep(judge.identity, {}, figures)
    marks = ", ".join(f"{rubric} {one['mark']}" for rubric, one in figures.items())
    console.print(f"{marks}: kappa's lower bound must reach {LOWEST_KAPPA}; written to {stored}", soft_wrap=True)
    return figures


def show(console: Console, name: str, table: Table) -> None:
    """Print one set's figures."""
    size = f"{table.num_items} answers to {table.num_questions} questions, {table.num_unscored} unscored"

    grid = Grid("people say", title=f"{name}: {size}; columns: judge", title_justify="left")
    for column in (*LABELS, UNSCORED):
        grid.add_column(column, justify="right", no_wrap=True)
    for label, row in table.confusion.items():
        grid.add_row(label, *map(str, row.values()))
    console.print(grid)

    console.print(f"kappa, correct or not: {_interval(table.correct)}", soft_wrap=True)
    if table.labels:
        console.print(f"kappa, three labels: {_interval(table.labels)}", soft_wrap=True)

    fifths = ", ".join(f"{fifth.words:.0f} words {fifth.error:+.3f}" for fifth in table.fifths)
    console.print(f"error in the share correct: {_interval(table.error, '+.3f')}; by length: {fifths}", soft_wrap=True)
    kinds = (f"{kind} {error:+.3f} of {count}" for kind, (error, count) in table.errors_by_kind.items())
    console.print("by kind: " + ", ".join(kinds), soft_wrap=True)

    if table.injection_limits:
        low, high = table.injection_limits
        followed = f"{table.injections_followed} of {table.num_injections}"
        console.print(f"injections followed: {followed} (95 %: {low:.1%} to {high:.1%})")
    if table.quality:
        console.print(f"quality, rank correlation: {_interval(table.quality)}")


def _interval(interval: Interval, form: str = ".3f") -> str:
    if interval.value is None:
        return "cannot be computed"
    limits = "" if interval.low is None else f" (95 %: {interval.low:{form}} to {interval.high:{form}})"
    return f"{interval.value:{form}}{limits}"


def _short(interval: Interval, form: str = ".2f") -> str:
    if interval.value is None:
        return "—"
    limits = "" if interval.low is None else f" [{interval.low:{form}}, {interval.high:{form}}]"
    return f"{interval.value:{form}}{limits}"


def run(judge: Judge, console: Console, sets: Sequence[LabelledSet], command: str = "") -> dict[str, dict[str, Any]]:
    """Measure on every set and print; store what decides trust.

    Returns:
        The figures that decide, by the name of their set.
    """
    console.print(f"judge: {judge.identity}", soft_wrap=True)
    started = time.monotonic()
    tables = {one.name: calibrate(judge, one.items) for one in sets}
    seconds = time.monotonic() - started
    for name, table in tables.items():
        show(console, name, table)
    count = sum(len(one.items) for one in sets)
    console.print(f"{count} answers in {seconds:.1f} s, {count / seconds:.1f} a second, cached ones included")

    decisive = {one.name: set_figures(tables[one.name], one.hash, command) for one in sets if one.is_decisive}
    if decisive:
        path = keep(judge.identity, decisive)
        verdict = measured(judge.identity, decisive)
        console.print(
            f"{verdict['mark']}: in each set kappa's lower bound must reach {LOWEST_KAPPA}, and the error may differ "
            f"by {LARGEST_ERROR_BY_LENGTH} between short and long answers; written to {path}",
            soft_wrap=True,
        )
    return decisive


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = OneLineParser(prog="python -m harness.calibrate", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", help="data=FILE, and as for python -m harness: judge=local, judge.KEY=…"
    )
    parser.add_argument("--part", choices=_PARTS, help="of data=FILE only these questions (split by a hash)")
    parser.add_argument("--name", default="", help="what data=FILE is called beside its figures")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also add the figures to this JSON file of judges")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    from harness.build import built_judge

    files = [Path(text.removeprefix("data=")) for text in options.overrides if text.startswith("data=")]
    overrides = [text for text in options.overrides if not text.startswith("data=")]
    try:
        if options.into:
            check_shippable(options.into)
        judge = built_judge(overrides)
        rated = {path: read_rated(path) for path in files if holds_ratings(path)}
        labelled = [path for path in files if path not in rated]
        sets = [one for path in labelled for one in sets_of_file(path, options.part, options.name)]
        if not files:
            sets = shipped_sets()

        judge.preflight()
        console = Console(highlight=False)
        shown = [f"data={Path(text).name}" if text.startswith("data=") else text for text in given]
        command = " ".join(["python -m harness.calibrate", *_without(shown, "--into")])
        decisive = run(judge, console, sets, command) if sets else {}
        by_rubric = [run_ratings(judge, console, path, texts, command) for path, texts in rated.items()]
        ratings = {rubric: figures for one in by_rubric for rubric, figures in one.items()}
        if options.into:
            ship(judge.identity, decisive, options.into, ratings)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _without(arguments: Sequence[str], option: str) -> list[str]:
    """Arguments without an option and its value."""
    at = arguments.index(option) if option in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]
