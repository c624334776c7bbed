"""A progress bar for gradings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def judging(total: int) -> Iterator[Callable[[int, str], None]]:
    """Show how many gradings are done, on a terminal only; the yielded function takes how many more, and a remark."""
    console = Console(stderr=True)
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    remark = TextColumn("{task.fields[remark]}")
    with Progress(*columns, remark, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=total, remark="")
        yield lambda done, text: progress.update(task, advance=done, remark=text)
