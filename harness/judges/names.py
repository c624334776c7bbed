"""Names and phrases in running text: whole words, small typos, short forms of people's names, lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.text import fold

_WORD = re.compile(r"(?:[^\W\d_]\.){2,}|\d+(?:[.,]\d+)*(?![^\W_])|[^\W_]+(?:['\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s?\Z")
_ARTICLES = frozenset({"a", "an", "the"})
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
    "twentieth",
)
_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMERALS = {word: str(number) for words in (_ORDINALS, _CARDINALS) for number, word in enumerate(words, 1)}
_ROMAN = re.compile(r"(?=[IVX])X{0,2}(?:IX|IV|V?I{0,3})\Z")
_ORDINAL_DIGITS = re.compile(r"(\d+)(?:st|nd|rd|th)\Z")
TITLES = frozenset(
    {"dr", "mr", "mrs", "ms", "sir", "lord", "lady", "king", "queen", "president", "prince", "princess", "pope"}
    | {"saint", "st", "professor", "prof", "general", "captain", "emperor", "painter", "composer", "author", "artist"}
    | {"brother", "sister", "father", "mother", "friar"}
)
_SUFFIXES = frozenset({"jr", "sr", "phd", "md"})
_STOPPED = """
a an the of in on at to for from by with and or but as is was are were be been being it its this that these those he she
they them his her their there here i you we me my your our do does did done have has had having will would can could
should may might must shall not no yes so if than then what which who whom whose when where why how many much name
called also very just one s t into about over under after before during between most some any all each other such only
own same too up down out off again more answer question correct think believe probably perhaps maybe possibly sure well
ok okay sorry please know known following based given however although though thus therefore additionally
moreover specifically furthermore actually while
"""
STOPWORDS = frozenset(_STOPPED.split())


@dataclass(frozen=True)
class Word:
    """A word of a text: how it is compared, how it was written, where it stands."""

    text: str
    raw: str
    start: int
    end: int

    @property
    def capital(self) -> bool:
        """Written with a capital letter."""
        return self.raw[0].isupper()


def split_words(text: str, *, articles: bool = False) -> list[Word]:
    """The words of a text in order, articles only if asked for."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        after_name = bool(found) and found[-1].capital and found[-1].end + 1 == match.start()
        canonical = _canonical(match[0], after_name)
        if canonical and (articles or canonical not in _ARTICLES or _is_letter_answer(match[0], text)):
            found.append(Word(canonical, match[0], match.start(), match.end()))
    return found


def _is_letter_answer(raw: str, text: str) -> bool:
    return raw == "A" and text.strip(" .") == "A"


def _canonical(raw: str, after_name: bool) -> str:
    if (after_name or len(raw) > 1) and raw.isascii() and _ROMAN.match(raw):
        return str(_roman(raw))
    plain = _POSSESSIVE.sub("", fold(raw)).replace("'", "").replace("\u2019", "").replace(",", "")
    plain = plain.replace(".", "") if plain[:1].isalpha() else plain
    ordinal = _ORDINAL_DIGITS.match(plain)
    return ordinal[1] if ordinal else _NUMERALS.get(plain, plain)


def _roman(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in numeral]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return sum(-value if value < following else value for value, following in pairs)


def distance(one: str, other: str) -> int:
    """Edits (insert, delete, replace, swap of neighbours) between two words."""
    before, row = list(range(len(other) + 1)), list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        earlier, before, row = before, row, [i]
        for j, right in enumerate(other, 1):
            best = min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                best = min(best, earlier[j - 2] + 1)
            row.append(best)
    return row[-1]


def same_word(found: str, wanted: str) -> bool:
    """Equal, or singular and plural of each other, or a small typo of a long word. Digits forgive nothing."""
    if found == wanted:
        return True
    if any(letter.isdigit() for letter in found + wanted) or min(len(found), len(wanted)) < 4:
        return False
    if _singular(found) == _singular(wanted):
        return True
    allowed = 2 if len(wanted) >= 10 else 1 if len(wanted) >= 6 else 0
    return allowed > 0 and found[0] == wanted[0] and distance(found, wanted) <= allowed


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


Span = tuple[int, int]


@dataclass(frozen=True)
class Phrase:
    """One accepted form of a gold answer, found as whole words.

    Args:
        text: the form.
        question: what was asked; words that it says already need not be in the answer.
    """

    text: str
    question: str

    @cached_property
    def words(self) -> list[Word]:
        """The words to look for."""
        return split_words(unicodedata.normalize("NFC", self.text))

    @cached_property
    def _needed(self) -> list[Word]:
        asked = {word.text for word in split_words(self.question)}
        rest = [word for word in self.words if not any(same_word(word.text, other) for other in asked)]
        named = [word for word in rest if len(word.text) > 2 and word.text not in STOPWORDS]
        return rest if named and len(rest) < len(self.words) else self.words

    @cached_property
    def _is_person(self) -> bool:
        asks = re.search(r"\bwho(?:m|se)?\b|\b(?:person|surname|last name)\b", self.question, re.IGNORECASE)
        whole = re.search(r"\bfull name\b|\bfirst name\b|\bfirst and last\b", self.question, re.IGNORECASE)
        name = 2 <= len(self.words) <= 4 and all(word.capital and word.text.isalpha() for word in self.words)
        return bool(asks and name and not whole)

    def find(self, words: Sequence[Word]) -> list[Span]:
        """Where the phrase stands among the words of a sentence."""
        if not self.words:
            return []
        found = self._windows(words, self.words)
        if not found and self._needed is not self.words:
            found = self._windows(words, self._needed)
        return found or (self._surnames(words) if self._is_person else [])

    def _windows(self, words: Sequence[Word], wanted: Sequence[Word]) -> list[Span]:
        joined = "".join(word.text for word in wanted)
        found = []
        for size in {len(wanted) - 1, len(wanted), len(wanted) + 1} - {0}:
            for at in range(len(words) - size + 1):
                window = words[at : at + size]
                if self._matches(window, wanted, joined, words):
                    found.append((window[0].start, window[-1].end))
        return sorted(found)

    def _matches(self, window: Sequence[Word], wanted: Sequence[Word], joined: str, words: Sequence[Word]) -> bool:
        if len(window) != len(wanted):
            return len(joined) > 3 and "".join(word.text for word in window) == joined
        if not all(same_word(word.text, other.text) for word, other in zip(window, wanted, strict=True)):
            return False
        if len(joined) == 1:  # "D" for vitamin D: a lone letter or digit is too little inside a sentence
            return len(words) <= 3 and window[0].raw.upper() == wanted[0].raw.upper()
        short = len(wanted) == 1 and len(joined) <= 3 and wanted[0].raw.isupper()
        return not short or window[0].raw.isupper() or len(words) <= 2  # "US" is not "us"

    def _surnames(self, words: Sequence[Word]) -> list[Span]:
        *given, last = [word for word in self.words if word.text not in _SUFFIXES]
        found = []
        for at, word in enumerate(words):
            if len(last.text) < 3 or not same_word(word.text, last.text):
                continue
            start = self._given_names(words, at, given)
            if start is not None:
                found.append((words[start].start, word.end))
        return found

    def _given_names(self, words: Sequence[Word], at: int, given: Sequence[Word]) -> int | None:
        """Index where the name begins, or None if another given name stands before the surname."""
        start = at
        for index in range(at - 1, max(-1, at - 4), -1):
            before = words[index]
            if words[index + 1].start - before.end > 2 or before.text in STOPWORDS or before.text in TITLES:
                break
            if any(_is_given(before.text, name.text) for name in given):
                start = index
            elif before.capital:
                return None
            else:
                break
        return start


def _is_given(found: str, wanted: str) -> bool:
    initial = min(len(found), len(wanted)) == 1 and found[0] == wanted[0]
    return initial or same_word(found, wanted)


_LIST = re.compile(r"\s*(?:,|;|/|&|\band\b)\s*", re.IGNORECASE)


def list_parts(gold: str, question: str) -> list[str]:
    """The parts of a gold answer that names several things, all of them needed; [] for a single thing.

    "Paris, France" needs its second part only if the question asks for two things.
    """
    parts = [part for part in _LIST.split(gold) if part]
    if len(parts) < 2 or any(len(part.split()) > 5 for part in parts):
        return []
    if re.search(r"\band\b|&", gold):
        return parts
    return parts if re.search(r"\b(?:and|two|three|four|both|names|list)\b", question, re.IGNORECASE) else []
