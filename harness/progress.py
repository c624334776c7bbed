"""Signs of life: a bar in a terminal, plain lines elsewhere, and everything in a log file.

A job is a row of phases (load, fit, search, …). In a terminal each one shows a bar while it lasts. Into a pipe or a
file goes a line whenever a phase that took a while ends, and at least every half minute while it lasts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
"""Reports so many newly finished items."""

Figures = Mapping[str, float | str]
"""What a job says of itself while it lasts: its phase, how far it is, what its search has reached."""

HEARTBEAT_SECONDS = 30.0
"""Longest silence into a pipe or a log."""
_WORTH_A_LINE_SECONDS = 5.0

console = Console(stderr=True)


@dataclass
class _Job:
    """The job that this process works on: its title, its place among all, and where its log goes."""

    title: str = ""
    place: str = ""
    log: Path | None = None
    watch: Callable[[Figures], None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_job = _Job()


@contextmanager
def job(title: str, number: int = 1, of: int = 1, log: Path | None = None) -> Iterator[None]:
    """All phases inside the block belong to this job.

    Args:
        title: what it does, in a few words.
        number: its place in the sweep, from 1.
        of: number of jobs in the sweep.
        log: a file that lines are added to.
    """
    _job.title, _job.log = title, log
    _job.place = f"job {number} of {of} · " if of > 1 else ""
    if of > 1:
        say("started")
    try:
        yield
    finally:
        _job.title, _job.place, _job.log = "", "", None


@contextmanager
def watched(watch: Callable[[Figures], None]) -> Iterator[None]:
    """Hand everything that is reported inside the block to ``watch`` as well."""
    before, _job.watch = _job.watch, watch
    try:
        yield
    finally:
        _job.watch = before


def report(figures: Figures) -> None:
    """Say how far the job is to whoever watches it; nothing happens if nobody does."""
    if _job.watch is not None:
        _job.watch(figures)


def say(text: str) -> None:
    """One line with the time and the job, into the log and, unless a bar says it, to stderr."""
    line = f"{datetime.now():%H:%M:%S} {_job.place}{_job.title}{': ' if _job.title else ''}{text}"
    with _job.lock:
        if not console.is_terminal:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if _job.log is not None:
            _job.log.parent.mkdir(parents=True, exist_ok=True)
            with _job.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class _RateColumn(ProgressColumn):
    """Finished items per second."""

    def render(self, task: Task) -> Text:
        """The rate so far, once there is one."""
        speed = task.finished_speed or task.speed
        text = "" if speed is None else f"{speed:.1f} {task.fields['unit']}/s"
        return Text(text, style="progress.data.speed")


@dataclass
class _Phase:
    """What is known of a phase while it lasts."""

    title: str
    total: int | None
    unit: str
    start: float = field(default_factory=monotonic)
    done: int = 0

    def figures(self) -> Figures:
        """How far it is, for a tracker."""
        known = {} if self.total is None else {"progress/total": self.total}
        return {"progress/phase": self.title, "progress/done": self.done, **known}

    def line(self) -> str:
        """How far it is, in words."""
        seconds = monotonic() - self.start
        if self.total is None or not self.done:
            return f"{self.title}, {_time(seconds)} so far"
        rate = self.done / seconds
        left = "" if self.done >= self.total else f", {_time((self.total - self.done) / rate)} left"
        return f"{self.title}, {self.done} of {self.total} {self.unit}, {rate:.1f}/s{left}"


@contextmanager
def phase(title: str, total: int | None = None, unit: str = "trials") -> Iterator[Advance]:
    """Show a phase until the block ends; call the yielded function with the number of newly finished items.

    Args:
        title: what happens, in a word or two.
        total: how many items there are; None if that is not known.
        unit: what they are.
    """
    state = _Phase(title, total, unit)
    ended = threading.Event()

    def heartbeat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            say(state.line())

    beat = threading.Thread(target=heartbeat, daemon=True)
    beat.start()
    try:
        with _bar(state) as draw:

            def advance(count: int) -> None:
                state.done += count
                draw(count)
                report(state.figures())

            report(state.figures())
            yield advance
    finally:
        ended.set()
        beat.join()
        seconds = monotonic() - state.start
        if seconds >= _WORTH_A_LINE_SECONDS:
            say(f"{title} took {_time(seconds)}")


_bars: list[Progress] = []
"""The bars on the screen; a phase inside another one is drawn below it."""


@contextmanager
def _bar(state: _Phase) -> Iterator[Advance]:
    """A bar that is gone when the phase is over; nothing where there is no terminal."""
    if not console.is_terminal:
        yield lambda _count: None
        return
    title = f"{_job.place}{_job.title} · {state.title}".strip(" ·")

    # A phase inside another gets a line under it: one display can hold several.
    if _bars:
        task = _bars[-1].add_task(title, total=state.total, unit=state.unit)
        yield lambda count: _bars[-1].advance(task, count)
        _bars[-1].remove_task(task)
        return

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        _bars.append(shown)
        task = shown.add_task(title, total=state.total, unit=state.unit)
        try:
            yield lambda count: shown.advance(task, count)
        finally:
            _bars.pop()


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
