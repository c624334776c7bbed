"""What counts as the gold answer in a sentence, and what as a rival to it, by the kind of thing that was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from harness.judges.dates import Date, dates, gold_date, needed_parts
from harness.judges.names import STOPWORDS, TITLES, Phrase, Span, Word, list_parts, same_word, split_words
from harness.judges.phrases import POINTS
from harness.judges.quantities import GoldNumber, Quantity, gold_number, quantities

_SLOT = re.compile(
    r"(?:\b(?:is|was|are|were|be|by|called|named)|:)\s+(?:(?:the|a|an|in|on|at|actually|probably) )?(?P<it>[^\W\d_]+)"
)
_SUBJECT = re.compile(r"\A\W*(?P<it>[^\W\d_]+)(?:\s+[^\W\d_]+)?\s+(?:is|was|are|were)\b")
_PREDICATE = re.compile(
    r"\b(?:is|are|was|were|called|named)\s+(?:\w+ly\s+)?(?:a|an|the)?\s*(?:[\w'-]+\s+){0,4}?(?P<noun>[\w'-]+)"
    r"(?=\s+(?:that|who|which|of|in|for|from|used|set|known|on|with|to|native|found)\b|[,.;:!?]|\s*\Z)"
)
_PARTICIPLE = re.compile(
    r"(?:\w+(?<!e)ed|born|built|confused|found|given|held|kept|known|made|mistaken|seen|set|shown|taken|thought|used)\Z"
)
_ASKS_WHERE = re.compile(
    r"\bwhere\b|\b(?:what|which) (?:continent|country|county|nation|province|region|state)\b", re.IGNORECASE
)
_ASKS_IN_WHICH = re.compile(r"\b(?:at|from|in|on|to) (?:what|which)\b", re.IGNORECASE)
_PLACED = re.compile(r"\b(?:at|from|in|near|of|to)\s+(?:the\s+)?(?P<it>[A-Z][\w'-]*)\s*,\s*\Z")
_SETTING = re.compile(
    r"\A(?P<subject>.*?)\b(?:is|was|are|were)\s+(?:a|an|the|one of)\s[^,.;:]*?\b(?:across|at|in|near|on|within)\s+"
    r"(?:the\s+)?\Z"
)
_COLOURS_TEXT = """
red green blue yellow white black orange purple pink brown grey gray gold silver violet turquoise beige golden
crimson scarlet indigo maroon cyan magenta
"""
_COLOURS = frozenset(_COLOURS_TEXT.split())
_GENERIC_TEXT = """
example character thing kind type term concept creature figure name play part form piece person place word phrase
group set number one member element
"""
_GENERIC = frozenset(_GENERIC_TEXT.split())
_KINDS_TEXT = """
actor actress animal artist author band bird book building capital city colour color company composer continent country
director film game inventor island king lake language leader man metal mountain movie musician novel ocean painter
painting person philosopher plant poet politician president queen river scientist sea singer song state town village
woman writer
"""
_KINDS = frozenset(_KINDS_TEXT.split())
_NO_NAMES_TEXT = """
american british english french german dutch italian spanish russian greek roman chinese japanese indian irish
scottish european african asian swedish polish baroque renaissance gothic classical romantic medieval soviet latin
christian monday tuesday wednesday thursday friday saturday sunday january february march april june july august
september october november december
"""
_NO_NAMES = frozenset(_NO_NAMES_TEXT.split())
_COUNTED = re.compile(r"\bhow many\s+(?P<what>(?:[^\W\d_]+\s+){1,3})", re.IGNORECASE)
_COUNTS = re.compile(
    r"\bhow (?:many|much|old|tall|long|high|far|deep|big|heavy|fast)\b|\b(?:number|percentage|percent|age)\b",
    re.IGNORECASE,
)


@cache
def _exonyms() -> Mapping[str, Sequence[str]]:
    """Names of well-known countries and cities in languages that models slip into."""
    return json.loads((Path(__file__).parent / "data" / "exonyms.json").read_text("utf-8"))


def content_words(text: str) -> list[Word]:
    """The words of a text that carry meaning."""
    return [word for word in split_words(text) if not _is_stopword(word)]


def _is_stopword(word: Word) -> bool:
    stem = re.split("['\u2019]", word.raw.lower())[0]  # "I'd", "it's", "don't"
    return word.text in STOPWORDS or stem in STOPWORDS or stem.removesuffix("n") in STOPWORDS


def among(word: Word, others: Sequence[Word]) -> bool:
    """Whether the word is one of the others, up to a small typo."""
    return any(same_word(word.text, other.text) for other in others)


@dataclass(frozen=True)
class Gold:
    """A gold answer and its aliases, as text."""

    question: str
    forms: tuple[str, ...]

    @cached_property
    def phrases(self) -> list[Phrase]:
        """Every accepted form; a remark in brackets may be left out."""
        plain = [re.sub(r"\s*\([^)]*\)", "", form).strip() for form in self.forms]
        places = [form.partition(",")[0] for form in plain if "," in form and self._asks_for_one_place]
        return [Phrase(form, self.question) for form in dict.fromkeys([*self.forms, *plain, *places]) if form]

    @property
    def _asks_for_one_place(self) -> bool:
        place = re.search(r"\b(?:where|city|town|village|place|born)\b", self.question, re.IGNORECASE)
        return bool(place) and not re.search(r"\b(?:and|country|state|province)\b", self.question, re.IGNORECASE)

    @cached_property
    def asked(self) -> list[Word]:
        """The meaningful words of the question."""
        return content_words(self.question)

    @cached_property
    def parts(self) -> list[list[Phrase]]:
        """The lists among the forms, part by part."""
        lists = (list_parts(form, self.question) for form in self.forms)
        return [[Phrase(part, "") for part in parts] for parts in lists if parts]

    def find(self, text: str) -> list[Span]:
        """Where the whole gold answer stands in a sentence."""
        words = split_words(text)
        found = [span for phrase in self.phrases for span in phrase.find(words)]
        for parts in self.parts:
            spans = [phrase.find(words) for phrase in parts]
            if all(spans):
                found.append((min(s[0][0] for s in spans), max(s[0][1] for s in spans)))
        return sorted(set(found))

    def find_part(self, text: str) -> bool:
        """Whether some, not all, of a gold answer of several parts stands in a text."""
        words = split_words(text)
        return any(any(phrase.find(words) for phrase in parts) for parts in self.parts)

    def rivals(self, text: str) -> bool:
        """Whether a sentence puts another name where the answer belongs."""
        named = [*_SLOT.finditer(text), *_SUBJECT.finditer(text)]
        words = [word for match in named if match["it"][0].isupper() for word in split_words(match["it"])]
        return any(word.text not in STOPWORDS and not among(word, self.asked) for word in words)

    @cached_property
    def is_name(self) -> bool:
        """Whether the gold is a proper name: a common noun shows by an alias in lower case."""
        firsts = [words[0] for form in self.forms if (words := split_words(form))]
        return all(word.capital or not word.raw.isalpha() for word in firsts)

    def has_kind(self, text: str) -> bool:
        """Whether a sentence puts something forward that could be the answer, beyond repeating or describing.

        Short sentences do with any new word. Longer ones need a colour where one is asked for, or a new name, or, where
        the gold is no name, a new noun at the end of "is a ...".
        """
        new = [word for word in content_words(text) if not self._is_old(word, text) and not self._is_kind(word)]
        if not new:
            return False
        if len(content_words(text)) <= 3 or (len(split_words(text)) <= 8 and POINTS.search(text)):
            return True
        if re.search(r"\bcolou?r\b", self.question, re.IGNORECASE):
            return any(word.text in _COLOURS for word in new)
        if any(self._is_new_name(word, text) for word in new):
            return True
        if self.is_name:
            return False
        nouns = [match["noun"] for match in _PREDICATE.finditer(text) if not _PARTICIPLE.match(match["noun"])]
        ends = {part for noun in nouns for part in noun.split("-")}
        if text.endswith(".") and self.is_repeated_by(text):
            ends.add(content_words(text)[-1].raw)
        return not ends or any(word.raw in ends and word.text not in _GENERIC for word in new)

    def is_repeated_by(self, text: str) -> bool:
        """Whether a sentence takes up the question's words, as a full answer would."""
        words = content_words(text)
        return sum(among(word, words) for word in self.asked) >= max(1, 0.75 * len(self.asked))

    def _is_kind(self, word: Word) -> bool:
        """Only says what sort of thing it is, where a name is asked for: "a city"."""
        return self.is_name and word.raw in _KINDS

    def _is_old(self, word: Word, text: str) -> bool:
        """It stood in the question, or is the beginning of a word of it where the text was cut off."""
        cut = word.end == len(text) and any(asked.text.startswith(word.text) for asked in self.asked)
        return cut or among(word, self.asked)

    def _is_new_name(self, word: Word, text: str) -> bool:
        if not word.capital or not word.text.isalpha() or len(word.raw) < 2:
            return False
        if word.text in _NO_NAMES or word.text in TITLES or dates(word.raw):
            return False
        if any(among(word, phrase.words) for phrase in self.phrases):
            return False  # the beginning of the gold itself, cut off
        initials = "".join(asked.text[0] for asked in split_words(self.question))
        if word.raw.isupper() and len(word.text) > 1 and word.text in initials:
            return False  # "Department of Defense (DOD)"
        if self._is_scenery(word, text):
            return False
        begins = not re.search(r"\w", text[: word.start])
        return not begins or bool(re.match(r",?\s+[A-Z]", text[word.end :]))

    def _is_scenery(self, word: Word, text: str) -> bool:
        """Whether a name only says where something of the question lies: "in Bath, England", "is a town in England"."""
        before = text[: word.start]
        run = re.search(r"(?:[A-Z][\w'-]*\s+)*\Z", before)
        lead = before[: run.start()] if run else before
        if _ASKS_WHERE.search(self.question):
            return False
        if placed := _PLACED.search(lead):
            return any(among(place, self.asked) for place in split_words(placed["it"]))
        setting = _SETTING.match(lead)
        if not setting or _ASKS_IN_WHICH.search(self.question):
            return False
        return all(among(other, self.asked) for other in content_words(setting["subject"]))

    def same_kind(self, other: str, mine: str) -> bool:
        """Whether two things side by side can be rivals: two names, or two plain nouns."""
        return other[:1].isupper() == mine[:1].isupper() or mine.islower()


@dataclass(frozen=True)
class NumberGold(Gold):
    """A gold answer that is a number."""

    number: GoldNumber = field(default=GoldNumber(Quantity(0, 0, 0, 0)))

    @cached_property
    def counted(self) -> list[Word]:
        """What "how many" asks to count."""
        what = _COUNTED.search(self.question)
        return content_words(what["what"])[:2] if what else []

    def _in_question(self, found: Quantity) -> bool:
        return any(found.value == asked.value for asked in quantities(self.question))

    def _attached(self, text: str, found: Quantity) -> bool:
        following = split_words(text[found.end :])[:3]
        return any(among(word, self.counted) for word in following)

    def _about_the_asked(self, text: str, found: Quantity) -> bool:
        cuts = [match.end() for match in re.finditer("[,;]", text[: found.start])]
        clause = text[cuts[-1] if cuts else 0 :].partition(",")[0]
        others = [word for word in self.asked if not among(word, self.counted)]
        return any(among(word, others) for word in content_words(clause))

    def _direct(self, text: str) -> list[Quantity]:
        every = [found for found in quantities(text) if not found.in_span]
        every = [found for found in every if not self._in_question(found)] or every
        if not any(self.counted and self._attached(text, found) for found in every):
            return every
        return [found for found in every if self._attached(text, found) or self._about_the_asked(text, found)]

    def find(self, text: str) -> list[Span]:
        """Numbers that agree; where some are said of the counted thing itself, only those."""
        return [(found.start, found.end) for found in self._direct(text) if self.number.accepts(found)]

    def find_part(self, text: str) -> bool:
        """A number has no parts."""
        return False

    def rivals(self, text: str) -> bool:
        """Whether a sentence holds another number that the question did not."""
        unit = self.number.number.unit
        return any(
            not self.number.accepts(found) and not self._in_question(found) and found.unit in ("", unit)
            for found in self._direct(text)
        )

    def has_kind(self, text: str) -> bool:
        """Whether a text holds a number that the question did not."""
        return any(not self._in_question(found) or self.number.accepts(found) for found in quantities(text))

    def same_kind(self, other: str, mine: str) -> bool:
        """Whether the other thing is a number that does not agree."""
        return any(not self.number.accepts(found) for found in quantities(other))


@dataclass(frozen=True)
class DateGold(Gold):
    """A gold answer that is a date."""

    date: Date = field(default_factory=Date)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The parts of the date that are asked for."""
        return needed_parts(self.question, self.date)

    def find(self, text: str) -> list[Span]:
        """Dates that agree."""
        return [(found.start, found.end) for found in dates(text) if found.agrees(self.date, self.needed)]

    def find_part(self, text: str) -> bool:
        """Whether a date agrees as far as it goes."""
        shared = [found for found in dates(text) if set(found.parts) & set(self.needed)]
        return any(found.agrees(self.date, ()) for found in shared)

    def rivals(self, text: str) -> bool:
        """Whether a sentence holds a date that differs and did not stand in the question."""
        asked = [found.parts and (found.year, found.month, found.day) for found in dates(self.question)]
        differing = [found for found in dates(text) if not found.agrees(self.date, ())]
        return any((found.year, found.month, found.day) not in asked for found in differing)

    def has_kind(self, text: str) -> bool:
        """Whether a text holds anything like a date, and a year if only a year is asked for."""
        year = any(found.year is not None for found in dates(text)) or re.search(r"\b\d{3,}s?\b|\bcentury\b", text)
        return bool(year) or (self.needed != ("year",) and bool(dates(text)))

    def same_kind(self, other: str, mine: str) -> bool:
        """Whether the other thing is a date that differs."""
        return any(not found.agrees(self.date, ()) for found in dates(other)) or bool(re.match(r"\d", other))


def gold_of(question: str, gold: str, aliases: Sequence[str]) -> Gold:
    """The kind of gold answer, read from the gold and the question."""
    forms = (gold, *aliases)
    forms += tuple(name for form in forms for name in _exonyms().get(form.strip(), ()))
    date, number = gold_date(gold), gold_number(gold)
    if date and not (number and _COUNTS.search(question)):
        return DateGold(question, forms, date)
    if number:
        return NumberGold(question, forms, number)
    return Gold(question, forms)
