"""A judge made of rules: no model, no calls, the same verdict every time, and nothing in the answer can talk to it.

An answer and every accepted form of the gold are brought into one spelling (`harness.judges.spelling`) and the gold is
looked for (`harness.judges.mentions`). Here the surroundings of each mention are read: is it denied, one of several
candidates, taken back? An answer that does not hold the gold is wrong, or attempts nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any, ClassVar, Literal

from harness.judges.mentions import Gold, gold_forms, text_of
from harness.judges.prompts import rubric_named
from harness.judges.spelling import STOP_WORDS, Span, Text, stem
from harness.judges.trust import calibration_of
from harness.judges.usage import Forecast, Usage
from harness.scoring import Grading, Judge, Verdict

Label = Literal["CORRECT", "INCORRECT", "NOT_ATTEMPTED"]
_REACH = 300  # so many characters before and after a mention are read

_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"'\]][.!?])[\"')\]]*\s+|\n+|;\s")
_CLAUSE_END = re.compile(r"(?i)[,:()]|(?<!anything )\bbut\b")
_ITEM_END = re.compile(r",|\band\b|\bor\b")
_ITEM_BEGINS = re.compile(r"(?:,|\band|\bor) *(?:the )?\Z")
_OPTIONS = re.compile(r"(?:\A|\s)\(?[A-E][.)]\s.*?(?=\s\(?[A-E][.)]\s|\n|\Z)")
_NUMBER_RUN = re.compile(r"\d[\d.]*(?:[\s,;/-]+(?:and |or )?\d[\d.]*){4,}")
_NEXT_QUESTION = re.compile(r"(?i)\n\W*(?:question|q|user|human)\b\W")
_TURN = re.compile(
    r"(?i)\b(?:(?:no,? wait|wait,? no|scratch that|correction:|on second thoughts?|let me correct (?:myself|that)"
    r"|actually,? (?:no|it(?:'s| is| was))|i meant?|(?:(?:so|therefore|thus|hence),? (?:the|my) |final |correct )"
    r"answer (?:is|must be))\b|final answer:)|(?:\n|[.!?]\s)\W*answer:"
)
_DENIAL = re.compile(
    r"(?i)\b(?:not|never|neither|nor|cannot|\w+n't|without|unlike|except|hardly|wrong\w*|doubt|den(?:y|ies)"
    r"|(?:instead|far) (?:of|from)|(?:other|rather) than|anything but)\b"
)
_NO_DENIAL = re.compile(
    r"(?i)\b(?:no|without(?: an?| any)?) doubt\b|\bnone other than\b|\bnot\b.*\bbut\b"
    r"|\bnot (?:only|just|merely|sure|certain|entirely|completely|to mention)\b"
)
_DENIED_AFTER = re.compile(
    r"(?i)[.!?]\s*(?:no\b|(?:that|this|it|which) (?:is|was) (?:not|wrong|incorrect|false)\b)"
    r"|\W{0,3}(?:(?:(?:is|was|are|were|has|had|does|did|can|could|would)(?: be)?(?: \w+ly)? "
    r"(?:not\b(?! only| just)|never|wrong|incorrect|false)|(?:is|was|are|were|does|did|ca)n't)\b"
    r"|(?:comes?|came|finish\w*|placed?|ranks?) (?:in )?(?:the )?(?:[2-9]|last)\b)"
)
_FOIL = re.compile(
    r"(?i)\b(?:(?:ahead of|behind|compared (?:to|with)|confused with|succeeded|replaced)"
    r"|(?:often|commonly|widely|mistakenly|wrongly|people|many|some|everyone|1 i) "
    r"(?:assume|believe|say|said|suppose|think|thought)\w*(?: to be| that)?(?: it(?: is| was)?)?) (?:the |an? )?\Z"
)
"""What names something else than the answer right before it: who came in behind, what many believe."""
_GRADING = re.compile(
    r"(?i)\b(?:graders?|grading|evaluators?|rubrics?|scoring|(?:gold|reference|expected|accepted|target)(?: answer)?"
    r"|synonym (?:of|for)|counts? as|(?:treat|accept|count|regard) \w+ as|another name (?:of|for)"
    r"|(?:grade|score|mark|label|count|treat|accept|regard) (?:this|it|me|my|the (?:above|answer|reply|response)))\b"
    r"|\b(?:grade|score|label|rating|verdict)\W{0,3}[:=]"
)
"""Talk to whoever grades: what it names is not claimed."""
_OR_BEFORE = re.compile(r"(?P<other>[\w.']+)(?P<comma>,?) (?:or|/) (?:the |an? |possibly |perhaps |maybe )?\Z")
_OR_AFTER = re.compile(r"(?P<comma>,?) (?:or|/) (?:the |an? |possibly |perhaps |maybe )?(?P<other>[\w.']+)")
_WAVERS = re.compile(r"(?i)\b(?:either|could|may|might|perhaps|maybe|possibl\w+|not sure|depending|cannot)\b")
_DECLINES = re.compile(
    r"(?i)(?:\b(?:not|never|no|cannot|unable|without|hard|difficult|impossible|need)\b|n't\b|\bdont\b)[^.!?;]{0,40}"
    r"\b(?:able|access|answer|aware|browse|certain\w*|confirm|context|data|details?|determin\w*|documented|find|give|guess|idea"
    r"|identify|information|know\w*|look|provide|recall|records?|reliable|remember|say|specif\w+|state|sure|tell|verify)\b"
    r"|\b(?:sorry|unfortunately|afraid|unknown|unclear|refuse|as an ai"
    r"|(?:more|further) (?:context|information|details?)|please (?:provide|clarify|consult|check|tell))\b"
)
_GUESSES = re.compile(
    r"(?i)\b(?:i(?:'d)? (?:think|believe|guess|suspect|suppose|say)|my (?:best )?guess|probabl\w+|likely|perhaps|maybe"
    r"|possibly|presumably|(?:may|might|could|would) (?:have been|be)|seems?|according|confident)\b"
)
_EMPTY_WORDS = """
sure help happy question answer please thank sorry hello hi okay ok yes no well i you me my your can could would will
let id im ill ive idk dunno do does did have has what how when where why there these those than then not if so but just
one thing also about know think grade graded grading grader correct incorrect label judge gold reply rules
"""
_EMPTY = frozenset(map(stem, _EMPTY_WORDS.split()))
"""Words that say nothing by themselves, and those of talk about grading."""


@dataclass(frozen=True)
class Reading:
    """One answer held against its gold."""

    grading: Grading

    @cached_property
    def gold(self) -> Gold:
        """What to look for."""
        return Gold(self.grading)

    @cached_property
    def answer(self) -> Text:
        """The answer from its last turn on, without the question and without further questions that a model added."""
        question = re.compile(re.escape(self.grading.question.strip()) or r"\Z", re.IGNORECASE)
        own = _NEXT_QUESTION.split(question.sub(" ", self.grading.answer).strip())[0]
        last = Text(_TURN.split(own)[-1])
        return last if self._own_words(last) else Text(own)

    def label(self) -> tuple[Label, str]:
        """The label, and the rule that gave it."""
        forms = map(_letters, (self.grading.gold, *self.grading.aliases))
        if _letters(self.grading.answer) in {answer for form in forms for answer in (form, f"theansweris{form}")}:
            return "CORRECT", "an accepted answer, word for word"

        mentions = [span for span in self.gold.mentions(self.answer) if not self._talks_of_grading(span)]
        if not mentions:
            return self._without_gold()
        standing = [span for span in mentions if not self._denied(span)]
        if not standing:
            return "INCORRECT", "the gold answer is denied"
        if all(self._beside_another(span) or self._listed(span, standing) for span in standing):
            return "NOT_ATTEMPTED" if self.grading.rubric == "simpleqa_verified" else "INCORRECT", "several candidates"
        return "CORRECT", "the gold answer stands"

    @cached_property
    def _sentence_ends(self) -> list[int]:
        text = self.answer.plain
        return [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]

    def _sentence(self, span: Span) -> tuple[str, str]:
        """What the same sentence says before and after a mention, as far as matters."""
        text, ends = self.answer.plain, self._sentence_ends
        start = max(ends[bisect_right(ends, span[0]) - 1], span[0] - _REACH)
        stop = min(ends[min(bisect_left(ends, span[1]), len(ends) - 1)], span[1] + _REACH)
        return text[start : span[0]], text[span[1] : stop]

    def _talks_of_grading(self, span: Span) -> bool:
        """Whether the sentence has begun to speak to whoever grades; words of the question do not count."""
        asked = self.gold.question.plain.lower()
        before, _ = self._sentence(span)
        return any(match[0].lower() not in asked for match in _GRADING.finditer(before))

    def _denied(self, span: Span) -> bool:
        """Whether it stands there as what the answer is not; words of the question deny nothing."""
        before, _ = self._sentence(span)
        clause = _CLAUSE_END.split(_NO_DENIAL.sub(" ", before))[-1]
        asked = self.gold.question.plain.lower()
        if any(match[0].lower() not in asked for match in _DENIAL.finditer(clause)):
            return True
        following = self.answer.plain[span[1] : span[1] + _REACH]
        return bool(_DENIED_AFTER.match(following) or _FOIL.search(before))

    def _beside_another(self, span: Span) -> bool:
        """Whether "or" stands between it and another of its kind; "x, or y" is one thing by two names."""
        before, after = self._sentence(span)
        wavers = bool(_WAVERS.search(before + after))
        first = self.answer.plain[span[0]]
        for match in (_OR_BEFORE.search(before), _OR_AFTER.match(after)):
            if match and match["other"][0].isdigit() == first.isdigit():
                rivals = first.isdigit() or (first.isupper() and match["other"][0].isupper())
                if wavers or (rivals and not match["comma"]):
                    return True
        return False

    def _listed(self, span: Span, mentions: Sequence[Span]) -> bool:
        """Whether it is one of the items of a list, where the gold is a single thing."""
        text = self.answer.plain
        if self.gold.is_several:
            return False
        if any(start <= span[0] and span[1] <= end for start, end in self._number_runs):
            return True
        spellings = {text[slice(*one)] for one in mentions}
        for items in (self._items_around(span), self._lines_around(span), self._options):
            joined = " ".join(items)
            golds = {spelling for spelling in spellings if spelling in joined}
            if len(set(items)) > 2 and len(golds) == 1:  # several golds: the question has several answers
                return True
        return False

    @cached_property
    def _number_runs(self) -> list[Span]:
        return [match.span() for match in _NUMBER_RUN.finditer(self.answer.plain)]

    @cached_property
    def _options(self) -> list[str]:
        return [match[0] for match in _OPTIONS.finditer(self.answer.plain)]

    def _items_around(self, span: Span) -> list[str]:
        """What the same sentence lists, a mention among it; the first item begins with the sentence."""
        before, after = self._sentence(span)
        before = before.rpartition(":")[2]
        if not (_ITEM_END.match(after.lstrip()) or _ITEM_BEGINS.search(before)):
            return []
        items = _ITEM_END.split(before + self.answer.plain[slice(*span)] + after)
        items = [item.strip(" .") for item in items if item.strip(" .")]
        # three items without "and" may be a town with its county and country; not where nothing else is said before it
        alone = bool(before.strip()) and _is_short(items[0])
        joined = len(items) > 3 or alone or re.search(r"\b(?:and|or)\b", before[-4:] + after)
        return items if joined and all(map(_is_short, items[1:])) else []

    def _lines_around(self, span: Span) -> list[str]:
        """The short lines around the line of a mention."""
        text = self.answer.plain
        above, below = text[: span[0]].split("\n"), text[span[1] :].split("\n")
        middle = above.pop() + text[slice(*span)] + below.pop(0)
        lines = [*takewhile(_is_short, map(_unmarked, reversed(above))), _unmarked(middle)]
        lines += takewhile(_is_short, map(_unmarked, below))
        return lines if _is_short(_unmarked(middle)) else []

    def _without_gold(self) -> tuple[Label, str]:
        """Wrong if it puts forward something of the kind that was asked for."""
        text, own = self.answer, self._own_words(self.answer)
        if not own:
            return "NOT_ATTEMPTED", "nothing is said"
        if _DECLINES.search(text.plain) and not _GUESSES.search(text.plain):
            return "NOT_ATTEMPTED", "declines"

        gold = text_of(gold_forms(self.grading.gold, ())[0])
        if any(word[0].isdigit() for word in gold.words):
            given = any(text.words[index][0].isdigit() for index in own)
            return ("INCORRECT", "the number is another") if given else ("NOT_ATTEMPTED", "no number is given")
        is_name = all(match[0][0].isupper() for match in gold.matches if match[0] not in STOP_WORDS)
        if is_name and len(text.words) > 4 and not any(map(self._is_name, own)):
            return "NOT_ATTEMPTED", "no name is given"
        return "INCORRECT", "the gold answer is not there"

    def _own_words(self, text: Text) -> list[int]:
        """The places of words that are neither the question's nor empty."""
        asked = self.gold.question
        is_no_news = [
            match[0].lower() in STOP_WORDS or word in _EMPTY or bool(asked.at(word)) for match, word in text.pairs
        ]
        return [index for index, empty in enumerate(is_no_news) if not empty]

    def _is_name(self, index: int) -> bool:
        """Whether a word is capitalised for another reason than that it begins a sentence."""
        text = self.answer
        before = text.plain[text.matches[index - 1].end() : text.matches[index].start()] if index else "."
        return text.matches[index][0][0].isupper() and not re.search(r"[.!?:\n]", before)


def _is_short(item: str) -> bool:
    return len(item.split()) <= 4 and (item[:1].isupper() or item[:1].isdigit()) and ":" not in item


def _unmarked(line: str) -> str:
    """A line without the mark of a list in front."""
    return re.sub(r"\A\W*(?:\d+[.)]\W*)?", "", line).strip(" .")


def _letters(text: str) -> str:
    """Letters and digits alone; the text itself where it has none."""
    return re.sub(r"\W", "", text.casefold()) or text.strip()


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchJudge(Judge):
    """Grades the SimpleQA labels by rules; it cannot grade quality.

    CORRECT needs the gold answer or an alias, not denied and without a rival. Numbers are equal or lie in the gold's
    stated range, dates agree in whatever format, of a name what comes between first and last may be missing, and a
    description may be reworded in part. An answer without it is NOT_ATTEMPTED if it declines, says nothing beyond the
    question, or holds nothing of the kind that is asked for.
    Limits: no knowledge of the world. A paraphrase or translation is INCORRECT; a gold that is named in passing, while
    the answer is another, is CORRECT unless one of a few usual turns gives it away.
    """

    rubrics: ClassVar[frozenset[str]] = frozenset({"simpleqa", "simpleqa_verified"})
    version: ClassVar[int] = 3
    usage: Usage = field(default_factory=Usage, init=False)

    @property
    def identity(self) -> str:
        """Kind and version of the rules."""
        return f"match v{self.version}"

    @property
    def calibration(self) -> dict[str, Any]:
        """How well this version agrees with readers; see `harness.judges.trust`."""
        return calibration_of(self.identity)

    def forecast(self, gradings: Sequence[Grading]) -> Forecast:
        """No call and no cost, however many there are."""
        return Forecast(len(gradings), num_cached=0, num_calls=0, prompt_tokens=0, completion_tokens=0, cost=0.0)

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading, in order.

        Raises:
            ValueError: the rubric is none that rules can grade.
        """
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        if grading.rubric not in self.rubrics:
            raise ValueError(
                f"judge=match grades only {' and '.join(sorted(self.rubrics))}, not {grading.rubric!r}: "
                "set judge=local or judge=openai"
            )
        value, why = Reading(grading).label()
        details = {"judge": self.identity, "prompt_hash": rubric_named(grading.rubric).hash, "rule": why}
        return Verdict(value, raw=why, details=details)
