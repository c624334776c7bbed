"""A judge made of rules: no model, no calls, the same verdict every time, and nothing in the answer can talk to it.

An answer and every accepted form of the gold are brought into one spelling. Dates and numbers are compared as values, all
else as stemmed words that may stand apart and carry a slip of spelling. Then the surroundings of each mention are read: is
it denied, one of several candidates, taken back? An answer that does not hold the gold is wrong, or attempts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

from anyascii import anyascii
from num2words import num2words
from rapidfuzz.distance import OSA
from snowballstemmer import stemmer

from harness.judges.prompts import rubric_named
from harness.judges.trust import calibration_of
from harness.judges.usage import Usage
from harness.scoring import Grading, Verdict

Label = Literal["CORRECT", "INCORRECT", "NOT_ATTEMPTED"]
Span = tuple[int, int]
"""First character of a mention and the one after its last, in `Text.plain`."""

_SLACK = 8  # so many other words may stand among the words of a gold answer
_SHARE_OF_NAME, _SHARE_OF_PHRASE = 0.6, 1 / 3  # so much of a gold's words must be there: a description can be reworded

_MONTHS = "january february march april may june july august september october november december".split()
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_STOP = frozenset("a an the of in on at to by for with from and or is was are were be it as that this which who".split())
_APPROXIMATE = frozenset("about around approximately roughly nearly almost over than more less some circa ca c".split())
_UNITS = tuple(
    tuple(frozenset(words.split()) for words in kind.split(" | "))
    for kind in (
        "second sec | minut min | hour hr h | day | week | month | year yr | decad | centuri",
        "mm millimetr millimet | cm centimetr centimet | m metr meter | km kilometr kilomet | foot feet ft | inch | mile mi",
        "g gram | kg kilogram kilo | pound lb | ounc oz | tonn ton",
    )
)


# Spelling: what is written differently and means the same becomes the same ----------------------------------------


def _roman() -> dict[str, str]:
    ones = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return {"X" * ten + one: str(10 * ten + value) for ten in range(4) for value, one in enumerate(ones)}


def _number_phrases() -> dict[str, int]:
    """Numbers as they are written out: "nineteen forty five", "twenty first", "two hundred three"."""
    kinds = (("year", range(1100, 2100)), ("ordinal", range(1, 200)), ("cardinal", range(2100)))
    return {_JOINT.sub(" ", num2words(n, to=kind)): n for kind, numbers in kinds for n in numbers}


_JOINT = re.compile(r"\W+(?:and )?")
_ROMAN, _PHRASES = _roman(), _number_phrases()
_NUMBER_WORD = "|".join(sorted({word for phrase in _PHRASES for word in phrase.split()}, key=len, reverse=True))


def _in_digits(match: re.Match[str]) -> str:
    words, digits = _JOINT.sub(" ", match[0].lower()).split(), []
    while words:
        size = next(n for n in range(len(words), 0, -1) if n == 1 or " ".join(words[:n]) in _PHRASES)
        digits.append(str(_PHRASES.get(" ".join(words[:size]), words[0])))
        words = words[size:]
    return " ".join(digits)


def _date(day: str, month: str, year: str) -> str:
    return f"{day} {_MONTHS[int(month) - 1]} {year}".strip() if 1 <= int(month) <= 12 else ""


def _either_date(match: re.Match[str]) -> str:
    """Both readings of 5/4/1999, and the only one of 25.4.1999."""
    first, _, second, year = match.groups()
    return " = ".join(filter(None, {_date(first, second, year): 1, _date(second, first, year): 1})) or match[0]


_SPELLING: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"https?://|[*_`#]+", ""),
    (r"(?<=\d),(?=\d{3}\b)|(?<=\d) (?=\d{3}\b)", ""),
    (r"(?<=[a-z])(?=[A-Z][a-z])|(?<=\b[A-Za-z]{3})(?=\d+\b)|(?<=[A-Za-z]{4})(?=\d+\b)", " "),
    (r"(?i)\b(\d+)(?:st|nd|rd|th)\b", r"\1"),
    (r"\b([A-Za-z])\.(?=[A-Za-z]\b)", r"\1"),
    (r"(?<=\w)'s?\b", ""),
    (r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b", lambda match: _date(match[3], match[2], match[1]) or match[0]),
    (r"\b(\d{1,2})([/.-])(\d{1,2})\2(\d{4})\b", _either_date),
    (r"\b(\d{1,2})/(\d{4})\b", lambda match: _date("", match[1], match[2]) or match[0]),
    *((rf"(?i)\b{month[:3]}{'t?' if month == 'september' else ''}\b\.?", month) for month in _MONTHS),
    (rf"(?i)\b(?:{_NUMBER_WORD})(?:[ -](?:and )?(?:{_NUMBER_WORD}))*\b", _in_digits),
    (
        rf"(?i)\b(\d+(?:\.\d+)?|a)[ -]({'|'.join(_SCALES)})\b",
        lambda match: str(round((1 if match[1] in "aA" else float(match[1])) * _SCALES[match[2].lower()])),
    ),
    (r"\b[XVI]{2,}\b|(?<=[a-z] )(?:[VX]|I(?=\W*$|[.,;:)]))\b", lambda match: _ROMAN.get(match[0], match[0])),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _SPELLING)
_WORD = re.compile(r"\d+(?:\.\d+)+|\d+[A-Za-z]\w*|[A-Za-z]+\d\w*|\d+|[A-Za-z]+(?:'[A-Za-z]+)*")
_stem = lru_cache(1 << 16)(stemmer("english").stemWord)


@dataclass(frozen=True, eq=False)
class Text:
    """A text in the common spelling, with its words."""

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
        """Where the words stand."""
        return list(_WORD.finditer(self.plain))

    @cached_property
    def words(self) -> list[str]:
        """The words, in lower case and without endings."""
        return [_stem(match[0].lower().replace("'", "")) for match in self.matches]

    @cached_property
    def _places(self) -> dict[str, dict[str, list[int]]]:
        """By first letter and word: a slip of spelling seldom changes the first letter."""
        places: dict[str, dict[str, list[int]]] = {}
        for index, word in enumerate(self.words):
            places.setdefault(word[0], {}).setdefault(word, []).append(index)
        return places

    def at(self, word: str) -> list[int]:
        """Numbers of the words that are this one, spelling slips allowed."""
        alike = self._places.get(word[0], {}).items()
        return sorted(index for other, places in alike if _same(word, other) for index in places)

    def span(self, first: int, last: int) -> Span:
        """From one word to another."""
        return self.matches[first].start(), self.matches[last].end()


@lru_cache(1 << 18)
def _same(one: str, other: str) -> bool:
    """Equal, or spelt alike: two edits if the consonants stay, in a long word a missing, added or swapped letter."""
    shorter = min(len(one), len(other))
    if one == other or shorter < 5 or not (one + other).isalpha():
        return one == other
    edits = OSA.distance(one, other, score_cutoff=2)
    if _consonants(one) == _consonants(other):
        return edits <= (2 if shorter > 5 else 1)
    return edits == 1 and shorter > 6 and (len(one) != len(other) or sorted(one) == sorted(other))


def _consonants(word: str) -> str:
    sounds = word.replace("ph", "f").replace("ck", "k").translate(str.maketrans("cqzwj", "kksvi", "aeiouyh"))
    return re.sub(r"(.)\1+", r"\1", sounds)


_read = lru_cache(1 << 14)(Text)


# Forms: what counts as the gold -----------------------------------------------------------------------------------

_RANGE = re.compile(r"\(acceptable range:\D*([\d.,]*\d)\D+([\d.,]*\d)[^)]*\)")
_ASIDE = re.compile(r"\s*\([^)]*\)")
_HEAD = re.compile(r"(?:, (?!Jr|Sr)|,? (?:by|who|which)\b|;| - |:).*", re.DOTALL)
_LIST = re.compile(r",.*(?:\band\b|&|,)")
_OR = re.compile(r"\bor\b|/")


def _forms(gold: str, aliases: Sequence[str]) -> list[str]:
    """Gold and aliases, also without what stands in brackets, and the gold's main part."""
    given = [_RANGE.sub("", gold), *aliases]
    forms = given + [_ASIDE.sub(" ", text) for text in given]
    forms += [] if _LIST.search(given[0]) else [_HEAD.sub("", forms[len(given)])]
    forms += [part for text in forms if _OR.search(text) for part in _OR.split(text)]
    return [form for form in dict.fromkeys(map(str.strip, forms)) if form]


_DAY, _MONTH, _YEAR = r"(?:([0-3]?\d) (?:of )?)?", rf"\b({'|'.join(_MONTHS)})\b", r"(1\d{3}|20\d\d)"
_DATE = re.compile(
    rf"(?i)\b{_DAY}{_MONTH}(?:,? ([0-3]?\d)\b(?! \w+ \d{{4}}))?(?:,? (?:of |in )?{_YEAR})?|\b{_YEAR}\b"
)


@dataclass(frozen=True)
class _Date:
    year: int | None
    month: int | None
    day: int | None
    span: Span

    @staticmethod
    def all_in(text: Text) -> list[_Date]:
        found = []
        for match in _DATE.finditer(text.plain):
            day, month, later_day, year, bare_year = match.groups()
            if month and month.islower() and month == "may" and not (day or later_day or year):
                continue  # the verb
            number = _MONTHS.index(month.lower()) + 1 if month else None
            parts = (int(part) if part else None for part in (year or bare_year, day or later_day))
            year_number, day_number = parts
            found.append(_Date(year_number, number, day_number, match.span()))
        return found

    def agrees(self, other: _Date, needed: str) -> bool:
        """Whether nothing differs and all that is needed is there."""
        pairs = {"year": (self.year, other.year), "month": (self.month, other.month), "day": (self.day, other.day)}
        return all(mine == its if name in needed else None in (mine, its) or mine == its for name, (mine, its) in pairs.items())


def _needed(question: str, gold: _Date) -> str:
    """The parts of a date that the question asks for; where it names none, all that the gold has."""
    has = [name for name in ("year", "month", "day") if getattr(gold, name) is not None]
    if re.search(r"(?i)\b(?:day|date)\b", question):
        return " ".join(has)
    named = [name for name in has if re.search(rf"(?i)\b{name}\b", question)]
    return " ".join(named or has)


@dataclass(frozen=True)
class Gold:
    """What counts as right in reply to one question."""

    grading: Grading

    @cached_property
    def question(self) -> Text:
        return Text(self.grading.question)

    @cached_property
    def range(self) -> tuple[float, float] | None:
        match = _RANGE.search(self.grading.gold)
        return (float(match[1].replace(",", "")), float(match[2].replace(",", ""))) if match else None

    def mentions(self, answer: Text) -> list[Span]:
        """Where an answer holds it, but for mere repetition of the question."""
        forms = _forms(self.grading.gold, self.grading.aliases)
        found = {span for form in forms for span in self._spans(_read(form), answer)}
        return sorted(span for span in found if not self._is_echo(span, answer))

    def _spans(self, form: Text, answer: Text) -> list[Span]:
        words = [word for word in form.words if word not in _STOP | _APPROXIMATE]
        dates = _Date.all_in(form)
        if len(dates) == 1 and not _WORD.search(_FILLERS.sub("", form.plain[: dates[0].span[0]] + form.plain[dates[0].span[1] :])):
            needed = _needed(self.grading.question, dates[0])
            return [date.span for date in _Date.all_in(answer) if date.agrees(dates[0], needed)]
        if words and len(words) <= 4 and [_is_number(word) for word in words] == [True] + [False] * (len(words) - 1):
            return self._numbers(words, answer)
        return self._worded(form, words, answer)

    def _numbers(self, words: Sequence[str], answer: Text) -> list[Span]:
        low, high = self.range or (float(words[0]), float(words[0]))
        unit = _unit(words[1:]) or _unit(self.question.words)
        found = [
            index
            for index, word in enumerate(answer.words)
            if _is_number(word) and low <= float(word) <= high and _compatible(unit, _unit(answer.words[index + 1 : index + 2]))
        ]
        counted = re.search(r"how many (?:more )?([a-z]+)", self.question.plain, re.IGNORECASE)
        if counted:
            noun = _stem(counted[1].lower())
            tied = [i for i, word in enumerate(answer.words) if _is_number(word) and noun in answer.words[i + 1 : i + 4]]
            found = [index for index in found if index in tied or not tied]
        return [answer.span(index, index) for index in found]

    def _worded(self, form: Text, words: Sequence[str], answer: Text) -> list[Span]:
        words = words or form.words
        whole = _windows(words, answer, len(form.words))
        joined = "".join(re.findall(r"[a-z0-9]", form.plain.lower()))
        if not whole and len(joined) > 6:
            whole = [match.span() for match in re.finditer(r"\W*".join(joined), answer.plain, re.IGNORECASE)]
        if whole or _LIST.search(form.plain):
            return whole
        own = [word for word in dict.fromkeys(words) if not self.question.at(word)]
        there = [word for word in own if answer.at(word)]
        if not own or any(word[0].isdigit() and not answer.at(word) for word in words):
            return []
        is_name = any(match[0][0].isupper() for match in form.matches)
        person = self._surname(form, answer) if is_name else []
        enough = len(there) >= len(own) * (_SHARE_OF_NAME if is_name else _SHARE_OF_PHRASE)
        return person or (_windows(there, answer, len(form.words)) if enough else [])

    def _surname(self, form: Text, answer: Text) -> list[Span]:
        """A person by surname: no other given name before it, no other surname after it."""
        *given, last = form.words
        if not _PERSON.search(self.grading.question) or not 1 <= len(given) <= 3 or self.question.at(last):
            return []
        initials = {word[0] for word in given}
        found = []
        for index in answer.at(last):
            before = _neighbour(answer, index, -1)
            if not _neighbour(answer, index, 1) and (not before or before[0] in initials or before in _TITLES):
                found.append(answer.span(index, index))
        return found

    def _is_echo(self, span: Span, answer: Text) -> bool:
        blocks = SequenceMatcher(None, self.question.words, answer.words, autojunk=False).get_matching_blocks()
        size = sum(span[0] <= match.start() < span[1] for match in answer.matches)
        for block in blocks:
            if block.size >= size + 3:
                start, end = answer.span(block.b, block.b + block.size - 1)
                if start <= span[0] and span[1] <= end:
                    return True
        return False


_FILLERS = re.compile(r"(?i)\b(?:the|in|on|of|by|since|around|about|c|ca|circa|ad|bc|utc|year|late|early|mid|season|\w+day)\b")
_PERSON = re.compile(r"(?i)\bwho(?:se|m)?\b|\b(?:which|what) (?:\w+ ){0,3}?\w+(?:er|or|ist|ian|ress|person|man)\b")
_TITLES = frozenset(map(_stem, "mr mrs ms dr sir lord lady dame king queen president captain general admiral professor saint st senator prince princess pope sergeant emperor father".split()))


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"\d+(?:\.\d+)?", word))


def _unit(words: Sequence[str]) -> tuple[int, int] | None:
    places = [(k, n) for word in words for k, kind in enumerate(_UNITS) for n, names in enumerate(kind) if word in names]
    return places[0] if places else None


def _compatible(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is None or other is None or one == other or one[0] != other[0]


def _neighbour(text: Text, index: int, step: int) -> str:
    """The word beside another if it is capitalised and nothing stands between; "" else."""
    first, last = sorted((index, index + step))
    if first < 0 or last >= len(text.matches):
        return ""
    gap = text.plain[text.matches[first].end() : text.matches[last].start()]
    beside = text.matches[index + step][0]
    return text.words[index + step] if beside[0].isupper() and not gap.strip(" .") and beside.lower() not in _STOP else ""


def _windows(words: Sequence[str], answer: Text, size: int) -> list[Span]:
    """The shortest stretches that hold all words, of at most ``size`` words and some slack."""
    wanted = dict.fromkeys(words)
    hits = sorted((index, word) for word in wanted for index in answer.at(word))
    last: dict[str, int] = {}
    found: list[Span] = []
    for index, word in hits:
        last[word] = index
        first = min(last.values())
        if len(last) == len(wanted) and index - first < size + _SLACK:
            found.append(answer.span(first, index))
            last.clear()
    return found


# Surroundings: what is said about a mention -----------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"'\]][.!?])[\"')\]]*\s+|\n+|;\s")
_DENIAL = re.compile(r"(?i)\b(?:not|never|neither|nor|cannot|\w+n't|without|unlike|except|hardly|wrong\w*|doubt|den(?:y|ies)|(?:instead|other|rather|far|anything) (?:of|than|from|but))\b")
_NO_DENIAL = re.compile(r"(?i)\b(?:no|without (?:a |any )?) ?doubt\b|\bnot (?:only|just|merely|sure|certain|entirely|completely|to mention)\b|\bnone other than\b|\bnot\b.*\bbut\b")
_CLAUSE = re.compile(r"[,:()]|\bbut\b")
_DENIED_AFTER = re.compile(r"(?i)\W{0,2} ?(?:(?:is|was|are|were|has|had|does|did|can|could|would)(?: be)?(?: \w+ly)? (?:not\b(?! only| just)|never|wrong|incorrect|false)|(?:is|was|are|were|does|did|ca)n't\b|no\b)")
_CORRECTION = re.compile(r"(?i)\b(?:no,? wait|wait,? no|scratch that|i meant?|correction:|let me correct (?:myself|that)|on second thoughts?)\b[,:.\s-]*")
_OTHER_BEFORE = re.compile(r"([\w.']+)(,?) or (?:the |an? |possibly |perhaps |maybe )?\Z")
_OTHER_AFTER = re.compile(r"(,?) or (?:the |an? |possibly |perhaps |maybe )?([\w.']+)")
_WAVERS = re.compile(r"(?i)\b(?:either|could|may|might|perhaps|maybe|possibl\w+|not sure|depending|cannot)\b")


@dataclass(frozen=True)
class Reading:
    """One answer held against its gold."""

    grading: Grading

    @cached_property
    def gold(self) -> Gold:
        return Gold(self.grading)

    @cached_property
    def answer(self) -> Text:
        parts = _CORRECTION.split(self.grading.answer)
        return Text(parts[-1] if _WORD.search(parts[-1]) else self.grading.answer)

    def label(self) -> tuple[Label, str]:
        """The label, and the rule that gave it."""
        mentions = self.gold.mentions(self.answer)
        if not mentions:
            return "INCORRECT", "the gold answer is not there"
        mentions = [span for span in mentions if not self._denied(span)]
        if not mentions:
            return "INCORRECT", "the gold answer is denied"
        if all(self._one_of_two(span) for span in mentions):
            several: Label = "NOT_ATTEMPTED" if self.grading.rubric == "simpleqa_verified" else "INCORRECT"
            return several, "several candidates"
        return "CORRECT", "the gold answer stands"

    def _around(self, span: Span) -> tuple[str, str]:
        """The same sentence before and after a mention."""
        text = self.answer.plain
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        start = max((end for end in ends if end <= span[0]), default=0)
        stop = min((end for end in ends if end >= span[1]), default=len(text))
        return text[start : span[0]], text[span[1] : stop]

    def _denied(self, span: Span) -> bool:
        before, after = self._around(span)
        clause = _CLAUSE.split(_NO_DENIAL.sub(" ", before))[-1]
        denials = {match[0].lower() for match in _DENIAL.finditer(clause)}
        asked = self.gold.question.plain.lower()
        return any(denial not in asked for denial in denials) or bool(_DENIED_AFTER.match(after))

    def _one_of_two(self, span: Span) -> bool:
        """Whether "or" stands between it and another of its kind."""
        before, after = self._around(span)
        wavers = bool(_WAVERS.search(before + after))
        mine = self.answer.plain[span[0]]
        others = ((_OTHER_BEFORE.search(before), 1, 2), (_OTHER_AFTER.match(after), 2, 1))
        for match, other, comma in others:
            if match and match[other][0].isdigit() == mine.isdigit() and (wavers or not match[comma]):
                if wavers or mine.isdigit() or (mine.isupper() and match[other][0].isupper()):
                    return True
        return False


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchJudge:
    """tmp."""

    rubrics: ClassVar[frozenset[str]] = frozenset({"simpleqa", "simpleqa_verified"})
    usage: Usage = field(default_factory=Usage, init=False)

    @property
    def identity(self) -> str:
        return "match v3"

    @property
    def calibration(self) -> dict[str, Any]:
        return calibration_of(self.identity)

    def preflight(self) -> None:
        """Rules are always at hand."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        value, why = Reading(grading).label()
        about = {"judge": self.identity, "prompt_hash": rubric_named(grading.rubric).hash, "rule": why}
        return Verdict(value, raw=why, details=about)
