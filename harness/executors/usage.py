"""What a judge used in a worker, counted in the process that reports it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.judges.usage import Usage
from harness.scoring import Judge


def usages(judge: Judge) -> list[Usage]:
    """Copies of what a judge, and those that it consists of, have used so far."""
    return [dataclasses.replace(usage) for usage in _counters(judge)]


def spent(before: Sequence[Usage], after: Sequence[Usage]) -> list[Usage]:
    """The difference of two such lists."""
    return [_sum(late, early, -1) for early, late in zip(before, after, strict=True)]


def add_usages(judge: Judge, more: Sequence[Usage]) -> None:
    """Count what the same judge used elsewhere."""
    for usage, other in zip(_counters(judge), more, strict=True):
        for name, value in vars(_sum(usage, other, 1)).items():
            setattr(usage, name, value)


def _counters(judge: Judge) -> list[Usage]:
    """The counters themselves, in an order that only the judge's settings decide."""
    own = [value for value in vars(judge).values() if isinstance(value, Usage)]
    return own + [usage for value in vars(judge).values() if isinstance(value, Judge) for usage in _counters(value)]


def _sum(first: Usage, second: Usage, sign: int) -> Usage:
    """Field by field; a cost that is not known stays so."""
    totals = {}
    for name, value in vars(first).items():
        other = getattr(second, name)
        totals[name] = None if value is None or other is None else value + sign * other
    return Usage(**totals)
