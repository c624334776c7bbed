"""Dates in running text, in any usual format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_MONTHS |= {name[:3]: number for name, number in _MONTHS.items()} | {"sept": 9}
_FOREIGN = {
    "januar janvier enero gennaio janeiro": 1,
    "februar fevrier février febrero febbraio fevereiro": 2,
    "märz marz mars marzo março": 3,
    "avril abril aprile": 4,
    "mai mayo maggio maio": 5,
    "juni juin junio giugno junho": 6,
    "juli juillet julio luglio julho": 7,
    "août aout agosto": 8,
    "septembre septiembre settembre setembro": 9,
    "oktober octobre octubre ottobre outubro": 10,
    "novembre noviembre novembro": 11,
    "dezember décembre decembre diciembre dicembre dezembro": 12,
}
_MONTHS |= {name: number for names, number in _FOREIGN.items() for name in names.split()}
_MONTH = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th|\.|er)?(?!\d)"
_YEAR = r"(?P<year>\d{4}|(?:'|(?<=[-/.]))\d{2}(?!\d))(?![\d,]\d)"
_SEPARATOR = r"\s*(?:,|-|/|\.|of|de|del)?\s*"
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?P<year>\d{4})(?P<mark>[-/.])(?P<month>1[0-2]|0?[1-9])(?P=mark)(?P<day>3[01]|[12]\d|0?[1-9])(?!\d)",
        rf"\b(?:the\s+)?{_DAY}{_SEPARATOR}{_MONTH}{_SEPARATOR}{_YEAR}",
        rf"\b{_MONTH}{_SEPARATOR}(?:the\s+)?{_DAY}{_SEPARATOR}{_YEAR}",
        rf"\b(?P<year>\d{{4}}){_SEPARATOR}{_MONTH}{_SEPARATOR}{_DAY}",
        r"\b(?P<first>3[01]|[12]\d|0?[1-9])(?P<mark>[-/.])(?P<second>3[01]|[12]\d|0?[1-9])(?P=mark)(?P<year>\d{4}|\d{2})(?!\d)",
        rf"\b{_MONTH}{_SEPARATOR}(?P<year>\d{{4}})(?![\d,]\d)",
        rf"\b(?:the\s+)?{_DAY}{_SEPARATOR}{_MONTH}",
        rf"\b{_MONTH}\s+(?:the\s+)?{_DAY}",
        r"(?<![\w.,$\u20ac\u00a3])(?P<year>1\d{3}|20\d{2})(?![\w]|[.,]\d)",
        r"\b(?P<year>\d{1,4})\s*(?P<era>BCE?\b|B\.C\.|AD\b|A\.D\.|CE\b)",
        r"\b(?P<era>AD\b|A\.D\.)\s*(?P<year>\d{1,4})\b",
        rf"\b{_MONTH}",
    )
)
_MAY_IS_A_VERB = re.compile(r"\A(?:may|mar|mars|sept)\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Date:
    """A date, as far as it is given. ``swapped`` is the other reading of 04/05/2006.

    Years before the common era are negative.
    """

    year: int | None = None
    month: int | None = None
    day: int | None = None
    start: int = 0
    end: int = 0
    swapped: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of year, month and day are given."""
        return tuple(name for name in ("year", "month", "day") if getattr(self, name) is not None)

    def agrees(self, gold: Date, needed: tuple[str, ...]) -> bool:
        """Whether all needed parts are given and right, and nothing that both give differs."""
        readings = [self]
        if self.swapped:
            readings.append(Date(self.year, *self.swapped))
        return any(reading._fits(gold, needed) for reading in readings)

    def _fits(self, gold: Date, needed: tuple[str, ...]) -> bool:
        both = [name for name in self.parts if name in gold.parts]
        right = all(getattr(self, name) == getattr(gold, name) for name in both)
        return right and all(name in self.parts for name in needed)


def dates(text: str) -> list[Date]:
    """All dates of a text, in order; fuller readings go first and are not read again in part."""
    found: list[Date] = []
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if not any(date.start < match.end() and match.start() < date.end for date in found):
                found += _read(match)
    return sorted(found, key=lambda date: date.start)


def _read(match: re.Match[str]) -> Iterator[Date]:
    group = match.groupdict()
    year = _year(group.get("year"), group.get("era"))
    at = {"start": match.start(), "end": match.end()}
    if "first" in group:
        first, second = int(group["first"]), int(group["second"])
        if second <= 12:
            yield Date(year, second, first, swapped=(first, second) if first <= 12 else None, **at)
        elif first <= 12:
            yield Date(year, first, second, **at)
        return
    month, day = group.get("month"), group.get("day")
    if month and not day and year is None and _MAY_IS_A_VERB.match(month):
        return
    number = None if month is None else int(month) if month.isdigit() else _MONTHS[month.lower()]
    yield Date(year, number, int(day) if day else None, **at)


def _year(digits: str | None, era: str | None) -> int | None:
    if digits is None:
        return None
    value = int(digits.strip("'"))
    if era:
        return -value if era.upper().startswith("B") else value
    if len(digits.strip("'")) == 2:
        return value + (2000 if value < 30 else 1900)
    return value


def gold_date(gold: str) -> Date | None:
    """The date that a gold answer consists of, or None if it is something else or more than one date."""
    found = dates(gold)
    if len(found) != 1:
        return None
    rest = gold[: found[0].start] + gold[found[0].end :]
    words = set(re.findall(r"[^\W_]+", rest.lower()))
    spare = {"on", "in", "the", "of", "c", "ca", "circa", "about", "around", "year", "monday", "tuesday", "wednesday"}
    return found[0] if words <= spare | {"thursday", "friday", "saturday", "sunday"} else None


def needed_parts(question: str, gold: Date) -> tuple[str, ...]:
    """The parts of the gold date that the question asks for; all that the gold gives if it does not say."""
    asked = question.lower()
    if re.search(r"\b(?:what|which|in what|in which)\s+year\b|\bwhat was the year\b", asked) and "month" not in asked:
        wanted: tuple[str, ...] = ("year",)
    elif re.search(r"\bmonth and year\b", asked):
        wanted = ("year", "month")
    elif re.search(r"\b(?:what|which)\s+month\b", asked):
        wanted = ("month",)
    elif re.search(r"\bday and month\b|\bmonth and day\b", asked):
        wanted = ("month", "day")
    else:
        wanted = gold.parts
    return tuple(name for name in wanted if name in gold.parts) or gold.parts
