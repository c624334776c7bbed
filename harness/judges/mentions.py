"""Where an answer holds the gold: dates and numbers by value, all else by words that may stand apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, lru_cache

from harness.judges.spelling import MONTHS, SCALES, STOP_WORDS, Span, Text, stem
from harness.scoring import Grading

_MOST = 200  # mentions that are returned: the last ones, for a loop has thousands
_SLACK = 8  # so many other words may stand among the words of a gold answer
_SLIP = 1e-3  # numbers in other units are rounded
_SHARE_OF_NAME, _SHARE_OF_PHRASE = 0.6, 1 / 3  # so much of a gold's own words must be there: descriptions get reworded

_VAGUE_WORDS = "about around approximately roughly nearly almost over than more less some circa ca c"
_VAGUE = frozenset(_VAGUE_WORDS.split())
_MEASURES = (
    "second sec 1|minute min 60|hour hr h 3600|day 86400|week 604800|month 2629800|year yr 31557600|decade 315576000"
    "|century 3155760000",
    "mm millimetre millimeter 0.001|cm centimetre centimeter 0.01|inch 0.0254|foot feet ft 0.3048|m metre meter 1"
    "|km kilometre kilometer 1000|mile mi 1609.344",
    "g gram 1|ounce oz 28.3495|pound lb 453.592|kg kilogram kilo 1000|tonne ton 1000000",
)


def _units() -> dict[str, tuple[int, float]]:
    """What each unit measures (the place of its line above), and how much of it."""
    units: dict[str, tuple[int, float]] = {}
    for kind, line in enumerate(_MEASURES):
        for unit in line.split("|"):
            *names, size = unit.split()
            units |= {stem(name): (kind, float(size)) for name in names}
    return units


_UNITS = _units()

_RANGE = re.compile(r"\s*\(acceptable range:([^)]*)\)")
_ASIDE = re.compile(r"\s*\([^)]*\)")
_AFTER_HEAD = re.compile(r"(?:, (?!Jr|Sr)|,? (?:by|who|which)\b|;| - |:).*", re.DOTALL)
_SEVERAL = re.compile(r"\band\b|&|,.*,")
_PARTS = re.compile(r",|\band\b|&")
_DATE = re.compile(
    rf"(?i)\b(?:(?P<day>[0-3]?\d) (?:of )?)?(?P<month>{'|'.join(MONTHS)})\b"
    r"(?:,? (?P<later>[0-3]?\d)\b(?! \w+ \d{4}))?"
    r"(?:,? (?:of |in )?(?P<year>1\d{3}|20\d\d))?"
    r"|\b(?P<bare>1\d{3}|20\d\d)\b"
)
_AROUND_DATE = re.compile(
    r"(?i)\b(?:the|in|on|of|by|since|around|about|c|ca|circa|ad|bc|utc|year|late|early|mid|season|\w+day)\b"
)


def gold_forms(gold: str, aliases: Sequence[str]) -> list[str]:
    """Gold and aliases, also without what stands in brackets, and the main part of the gold: what comes first."""
    given = [_RANGE.sub("", gold), *aliases]
    forms = [*given, *(_ASIDE.sub(" ", text) for text in given)]
    if not _SEVERAL.search(gold) and not _DATE.search(given[0]):
        forms.append(_AFTER_HEAD.sub("", forms[len(given)]))
    return [form for form in dict.fromkeys(map(str.strip, forms)) if form]


text_of = lru_cache(1 << 14)(Text)
"""The text of a gold's form, read once."""


@dataclass(frozen=True)
class Gold:
    """What counts as right in reply to one question."""

    grading: Grading

    @cached_property
    def question(self) -> Text:
        """The question as a text."""
        return Text(self.grading.question)

    @cached_property
    def is_several(self) -> bool:
        """Whether it names several things together."""
        return bool(_PARTS.search(self.grading.gold))

    def mentions(self, answer: Text) -> list[Span]:
        """Where an answer holds it, in order; not where the answer merely repeats the question."""
        forms = map(text_of, gold_forms(self.grading.gold, self.grading.aliases))
        spans = {span for form in forms for span in self._spans(form, answer)}
        echoes = self._echoes(answer)

        mentions: list[Span] = []
        for span in sorted(spans, key=lambda span: (span[0], -span[1])):
            inside = bool(mentions) and span[1] <= mentions[-1][1]
            if not inside and not any(start <= span[0] and span[1] <= end for start, end in echoes):
                mentions.append(span)
        return mentions[-_MOST:]

    def _echoes(self, answer: Text) -> list[Span]:
        """Runs of words that an answer takes from the question, and that are longer than the gold."""
        size = len(Text(self.grading.gold).words) + 2
        matcher = SequenceMatcher(None, self.question.words, answer.words, autojunk=False)
        return [answer.span(run.b, run.b + run.size - 1) for run in matcher.get_matching_blocks() if run.size > size]

    def _spans(self, form: Text, answer: Text) -> list[Span]:
        date = _only_date(form)
        if date:
            asked = self._asked(date)
            return [span for other, span in _dates(answer) if _agree(date, other, asked)]

        words = [word for match, word in form.pairs if match[0].lower() not in STOP_WORDS | _VAGUE]
        if 1 <= len(words) <= 4 and _is_number(words[0]) and not any(map(_is_number, words[1:])):
            return self._numbers(form, words, answer)
        return self._whole(form, words or form.words, answer) or self._part(form, words, answer)

    def _asked(self, date: Mapping[str, int]) -> list[str]:
        """The parts of a date that the question names; where it names none or asks for the date, all there are."""
        named = [name for name in date if re.search(rf"(?i)\b{name}\b", self.grading.question)]
        return list(date) if not named or re.search(r"(?i)\b(?:day|date)\b", self.grading.question) else named

    def _numbers(self, form: Text, words: Sequence[str], answer: Text) -> list[Span]:
        """Numbers that are equal, or in the range that the gold states, and do not count something else."""
        stated = _RANGE.search(self.grading.gold)
        limits = [float(word) for word in Text(stated[1]).words if _is_number(word)] if stated else []
        low, high = limits if len(limits) == 2 else _rounded(form.raw, words[0])

        unit = _unit(words[1:]) or _unit(self.question.words)
        dates = [span for date, span in _dates(answer) if "month" in date]
        dated = {
            start + match.start() for start, end in dates for match in re.finditer(r"\d+", answer.plain[start:end])
        }
        numbers = [(index, float(word)) for index, word in enumerate(answer.words) if _is_number(word)]
        right = []
        for index, value in numbers:
            if answer.matches[index].start() in dated:
                continue
            other = _unit(answer.words[index + 1 : index + 2])
            slip = 0.0
            if unit and other and unit != other and unit[0] == other[0]:
                value, slip = value * other[1] / unit[1], _SLIP
            if low * (1 - slip) <= value <= high * (1 + slip):
                right.append(index)
        return [answer.span(index, index) for index in right]

    def _whole(self, form: Text, words: Sequence[str], answer: Text) -> list[Span]:
        """All words near each other; else all letters in a row; else the initials."""
        spans = _windows(words, answer, len(form.words))
        letters = re.sub(r"[^a-z0-9]", "", form.plain.lower())
        if not spans and len(letters) > 6:
            spans = [match.span() for match in re.finditer(r"\W*".join(letters), answer.plain, re.IGNORECASE)]

        initials = "".join(match[0][0] for match in form.matches if match[0].lower() not in STOP_WORDS)
        if not spans and initials.isupper() and re.match("[A-Z]{2}", initials):
            spans = [match.span() for match in re.finditer(rf"\b{initials}\b", answer.plain)]
        return spans

    def _part(self, form: Text, words: Sequence[str], answer: Text) -> list[Span]:
        """A surname, or enough of the words that the question does not hold; all numbers, never a part of several."""
        own = [word for word in dict.fromkeys(words) if not self.question.at(word)]
        there = [word for word in own if answer.at(word)]
        numbers_missing = any(word[0].isdigit() and not answer.at(word) for word in words)
        if _PARTS.search(form.plain) or numbers_missing or all(word[0].isdigit() for word in there):
            return []

        capitals = [match[0][0].isupper() for match, word in form.pairs if word in words and word[0].isalpha()]
        surname = self._surname(form, answer) if any(capitals) else []
        if surname:
            return surname

        # "Oil paintings" describes as "oil paintings" does; an alias with a capital may be a person's names in disorder
        heads = words[-1] in there and not all(capitals) and form.raw not in self.grading.aliases
        share = _SHARE_OF_PHRASE if heads or not any(capitals) else _SHARE_OF_NAME
        return _windows(there, answer, len(form.words)) if len(there) >= share * len(own) else []

    def _surname(self, form: Text, answer: Text) -> list[Span]:
        """The last of a few names, with no other name after it, and before it only one with a fitting initial."""
        *given, last = form.words
        if not 1 <= len(given) <= 3 or self.question.at(last):
            return []
        initials = {word[0] for word in given} | {""}
        return [
            answer.span(index, index)
            for index in answer.at(last)
            if (answer.matches[index][0][0].isupper() or answer.plain.islower())
            and not answer.beside(index, 1)
            and answer.beside(index, -1)[:1] in initials
        ]


def _dates(text: Text) -> Iterator[tuple[dict[str, int], Span]]:
    for match in _DATE.finditer(text.plain):
        month = MONTHS.index(match["month"].lower()) + 1 if match["month"] else None
        parts = {"year": match["year"] or match["bare"], "month": month, "day": match["day"] or match["later"]}
        date = {name: int(part) for name, part in parts.items() if part}
        if date != {"month": 5} or match[0] == "May":  # else it is the verb
            yield date, match.span()


def _only_date(form: Text) -> dict[str, int] | None:
    """The date that a form consists of; None where it says more or holds none."""
    dates = list(_dates(form))
    if len(dates) != 1:
        return None
    date, (start, end) = dates[0]
    return None if re.search(r"\w", _AROUND_DATE.sub("", form.plain[:start] + form.plain[end:])) else date


def _agree(gold: Mapping[str, int], other: Mapping[str, int], asked: Sequence[str]) -> bool:
    """Whether a date has all that is asked for, and nothing in it differs."""
    return set(asked) <= other.keys() and all(gold[name] == other[name] for name in gold.keys() & other.keys())


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"\d+(?:\.\d+)?", word))


def _rounded(form: str, number: str) -> tuple[float, float]:
    """The values that round to a number as it is written: to its last decimal, or its last figure before "million"."""
    scale = re.search(rf"(?i)(\d) ?({'|'.join(SCALES)}|k)\b", form)
    decimals = re.search(r"\d\.(\d+)", form)
    if not scale and not decimals:
        return float(number), float(number)
    zeros = re.search(r"0*$", number.removesuffix(".0"))
    step = 1 / 10 ** len(decimals[1]) if decimals else 10 ** len(zeros[0] if zeros else "")
    if decimals and scale:
        step *= SCALES.get(scale[2].lower(), 1000)
    return float(number) - step / 2, float(number) + step / 2


def _unit(words: Sequence[str]) -> tuple[int, float] | None:
    return next((_UNITS[word] for word in words if word in _UNITS), None)


def _windows(words: Sequence[str], answer: Text, size: int) -> list[Span]:
    """Stretches of at most ``size`` words and some slack that hold all the words, numbers in their order."""
    places = sorted((place, word) for word in dict.fromkeys(words) for place in answer.at(word))
    numbers = [word for word in dict.fromkeys(words) if word[0].isdigit()]

    last: dict[str, int] = {}
    windows: list[Span] = []
    for place, word in places:
        last[word] = place
        first = min(last.values())
        complete = last.keys() >= set(words) and place - first < size + _SLACK
        if complete and numbers == sorted(numbers, key=lambda number: last[number]):
            windows.append(answer.span(first, place))
            last.clear()
    return windows
