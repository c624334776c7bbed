"""One spelling for what means the same: numbers in digits, dates as "8 may 2009", words without endings and accents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from anyascii import anyascii
from num2words import num2words
from rapidfuzz.distance import OSA
from snowballstemmer import stemmer

Span = tuple[int, int]
"""First character and the one after the last, in `Text.plain`."""

_SMALL_WORDS = "a an the of in on at to by for with from and or is was are were be it as that this which who"
STOP_WORDS = frozenset(_SMALL_WORDS.split())
_MONTH_NAMES = "january february march april may june july august september october november december"
MONTHS: list[str] = [*_MONTH_NAMES.split()]
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}

stem = lru_cache(1 << 16)(stemmer("english").stemWord)
"""A word in lower case without its ending."""

_Replacement = str | Callable[[re.Match[str]], str]
_JOINT = re.compile(r"\W+(?:and )?")


def _number_phrases() -> dict[str, int]:
    """Numbers as they are written out: "nineteen forty five", "twenty first", "two hundred three"."""
    kinds = (("year", range(1100, 2100)), ("ordinal", range(1, 200)), ("cardinal", range(2100)))
    return {_JOINT.sub(" ", num2words(n, to=kind)): n for kind, numbers in kinds for n in numbers}


def _roman_numerals() -> dict[str, str]:
    ones = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return {"X" * ten + one: str(10 * ten + value) for ten in range(4) for value, one in enumerate(ones)}


_PHRASES, _ROMAN = _number_phrases(), _roman_numerals()
_NUMBER_WORD = "|".join(sorted({word for phrase in _PHRASES for word in phrase.split()}, key=len, reverse=True))


def _in_digits(match: re.Match[str]) -> str:
    """Number words, longest phrases first: "two thousand and seven" is one number, "two seven" are two."""
    words, digits = _JOINT.sub(" ", match[0].lower()).split(), []
    while words:
        size = next(n for n in range(min(len(words), 8), 0, -1) if n == 1 or " ".join(words[:n]) in _PHRASES)
        digits.append(str(_PHRASES.get(" ".join(words[:size]), words[0])))
        words = words[size:]
    return " ".join(digits)


def _times_scale(match: re.Match[str]) -> str:
    number = 1.0 if match[1] in "aA" else float(match[1])
    return str(round(number * SCALES.get(match[2].lower(), 1000)))


def _in_words(day: str, month: str, year: str) -> str:
    return f"{day} {MONTHS[int(month) - 1]} {year}".strip() if 1 <= int(month) <= 12 else ""


def _iso_date(match: re.Match[str]) -> str:
    return _in_words(match[3], match[2], match[1]) or match[0]


def _date_in_digits(match: re.Match[str]) -> str:
    """Both readings of 5/4/1999, the only one of 25.4.1999."""
    first, _, second, year = match.groups()
    readings = dict.fromkeys((_in_words(first, second, year), _in_words(second, first, year)))
    return " = ".join(filter(None, readings)) or match[0]


def _month_in_digits(match: re.Match[str]) -> str:
    return _in_words("", match[1], match[2]) or match[0]


def _roman(match: re.Match[str]) -> str:
    return _ROMAN.get(match[0], match[0])


_RULES: tuple[tuple[str, _Replacement], ...] = (
    (r"[*_`#]+", ""),  # Markdown
    (r"(?<=\d),(?=\d{3}\b)|(?<=\d) (?=\d{3}\b)", ""),  # 384,400 and 384 400
    (r"(?<=[a-z])(?=[A-Z][a-z])", " "),  # "byLeonardo": a lost blank
    (r"(?<=\b[A-Za-z]{3})(?=\d+\b)|(?<=[A-Za-z]{4})(?=\d+\b)", " "),  # "Leonardo12": a footnote's mark
    (r"(?i)\b(\d+)(?:st|nd|rd|th)\b", r"\1"),
    (r"\b([A-Za-z])\.(?=[A-Za-z]\b)", r"\1"),  # U.S.A.
    (r"(?<=\w)'s\b|(?<=s)'(?!\w)", ""),
    (r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b", _iso_date),
    (r"\b(\d{1,2})([/.-])(\d{1,2})\2(\d{4})\b", _date_in_digits),
    (r"\b(\d{1,2})/(\d{4})\b", _month_in_digits),
    *((rf"(?i)\b{month[:3]}{'t?' if month == 'september' else ''}\b\.?", month) for month in MONTHS),
    (rf"(?i)\b(?:{_NUMBER_WORD})(?:[ -](?:and )?(?:{_NUMBER_WORD}))*\b", _in_digits),
    (rf"(?i)\b(\d+(?:\.\d+)?|a)[ -]?({'|'.join(SCALES)}|k)\b", _times_scale),
    (r"\b[XVI]{2,}\b|(?<=[a-z] )(?:[VX]|I(?=\W*$|[.,;:)]))\b", _roman),  # a lone I is a numeral at the end only
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)
_WORD = re.compile(r"\d+(?:\.\d+)+|\d+[A-Za-z]\w*|[A-Za-z]+\d\w*|\d+|[A-Za-z]+(?:'[A-Za-z]+)*")


@dataclass(frozen=True, eq=False)
class Text:
    """A text in the common spelling, and its words."""

    raw: str

    @cached_property
    def plain(self) -> str:
        """ASCII, numbers in digits, dates as "8 may 2009"."""
        text = anyascii(self.raw.replace("%", " percent ").replace("&", " and ").replace("\u2019", "'"))
        for pattern, replacement in _COMPILED:
            text = pattern.sub(replacement, text)
        return text

    @cached_property
    def matches(self) -> list[re.Match[str]]:
        """Where each word stands."""
        return list(_WORD.finditer(self.plain))

    @cached_property
    def words(self) -> list[str]:
        """The words in lower case, without endings."""
        return [stem(match[0].lower().replace("'", "")) for match in self.matches]

    @property
    def pairs(self) -> Iterator[tuple[re.Match[str], str]]:
        """Each word as it stands and in the common spelling."""
        return zip(self.matches, self.words, strict=True)

    @cached_property
    def _places(self) -> dict[str, dict[str, list[int]]]:
        """Places by first letter, which a slip of spelling seldom changes, and by word."""
        places: dict[str, dict[str, list[int]]] = {}
        for index, word in enumerate(self.words):
            places.setdefault(word[0], {}).setdefault(word, []).append(index)
        return places

    def at(self, word: str) -> list[int]:
        """The places of a word, slips of spelling allowed."""
        if word not in self._looked_up:
            alike = self._places.get(word[0], {}).items()
            self._looked_up[word] = sorted(index for other, places in alike if _same(word, other) for index in places)
        return self._looked_up[word]

    @cached_property
    def _looked_up(self) -> dict[str, list[int]]:
        """The places of each word that was asked for."""
        return {}

    def span(self, first: int, last: int) -> Span:
        """From one word to another."""
        return self.matches[first].start(), self.matches[last].end()

    def beside(self, index: int, step: int) -> str:
        """The capitalised word next to another; "" where there is none, or a comma or the like stands between."""
        first, last = sorted((index, index + step))
        if first < 0 or last >= len(self.matches) or self.words[index + step] in STOP_WORDS:
            return ""
        between = self.plain[self.matches[first].end() : self.matches[last].start()]
        return (
            self.words[index + step] if self.matches[index + step][0][0].isupper() and not between.strip(" .") else ""
        )


@lru_cache(1 << 18)
def _same(one: str, other: str) -> bool:
    """Equal, or spelt alike: the same consonants, or in a long word one letter that is missing, added or swapped."""
    shorter = min(len(one), len(other))
    if one == other or shorter < 6 or not (one + other).isalpha():
        return one == other
    edits = OSA.distance(one, other, score_cutoff=2)
    if _consonants(one) == _consonants(other):
        return edits <= 2
    return edits == 1 and shorter > 6 and (len(one) != len(other) or sorted(one) == sorted(other))


def _consonants(word: str) -> str:
    sounds = word.replace("ph", "f").replace("ck", "k").translate(str.maketrans("cqzwj", "kksvi", "aeiouyh"))
    return re.sub(r"(.)\1+", r"\1", sounds)
