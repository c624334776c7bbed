"""`python -m harness.compare RUN… | SWEEP_DIR`: compare finished runs; tables here, JSON, CSV and a report on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from harness.commands.parser import OneLineParser
from harness.progress import phase
from harness.report.claims import Pairs
from harness.report.compare import Comparison
from harness.report.expect import held_against, read_expectations
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.terminal import print_comparison, print_paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write; exit status 0 unless runs cannot be compared (2) or some are not counted (1)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if "" in options.runs:
        parser.error("a run's or sweep's folder must be named, got ''")
    options.runs = [Path(name) for name in options.runs]
    # In a folder of many runs one that is damaged must not hide the others; whoever names runs means each of them.
    named = all((path / "run.json").is_file() for path in options.runs)
    try:
        with phase("intervals and tests"):
            comparisons = compare_groups(
                options.runs,
                across_models=options.across_models,
                primary=options.metric,
                pairs=options.contrasts,
                strict=named and not options.keep_going,
            )
        expectations = read_expectations(options.expect) if options.expect else {}
        published = [held_against(comparison, expectations) for comparison in comparisons]
        with phase("tables and figures"):
            written = write_report(comparisons, options.out or _default_directory(options.runs), published)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    console = Console()
    for comparison, values in zip(comparisons, published, strict=True):
        print_comparison(comparison, values, console, explain=options.explain)
    print_paths(written, console, explain=options.explain)
    return 1 if _any_failure(comparisons) else 0


def _any_failure(comparisons: Sequence[Comparison]) -> bool:
    return any(comparison.failures for comparison in comparisons)


def _default_directory(runs: Sequence[Path]) -> Path:
    """A sweep's report goes into the sweep's directory, that of chosen runs into ``comparison/``."""
    first = runs[0]
    is_sweep = len(runs) == 1 and not (first / "run.json").is_file()
    return first if is_sweep else Path("comparison")


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m harness.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN|SWEEP_DIR", help="runs, or a sweep's directory")
    parser.add_argument("--out", type=Path, help="where to write (default: the sweep's directory, or comparison/)")
    parser.add_argument("--expect", type=Path, metavar="EXPERIMENT_YAML", help="hold results against published values")
    parser.add_argument("--across-models", action="store_true", help="allow runs on different models")
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="list what cannot be compared, do not refuse",
    )
    parser.add_argument("--metric", metavar="NAME", help="metric to test (default: the one that the task names)")
    parser.add_argument(
        "--contrasts", choices=get_args(Pairs), default="auto",
        help="methods to test against each other: those whose claims stand (auto), or all, which is exploratory",
    )  # fmt: skip
    parser.add_argument("--explain", action="store_true", help="print every table, and what they mean in words")
    return parser
