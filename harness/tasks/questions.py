"""Questions with a short answer: what the question-answering tasks have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data import Example, Pair
from harness.tasks.published import HubTask
from harness.tasks.selection import order
from harness.tasks.task import Offer, Task
from harness.text import normalise


@dataclass(frozen=True, kw_only=True)
class Questions(Task):
    """A task whose contrast pairs are (question, gold, wrong answer).

    The wrong answer is the item's first distractor. Where items come without distractors it is the gold of another
    training item: of the same answer type, as close as can be had in number of words, then by the SHA-256 of question
    and candidate. So it is wrong, but of the right kind. A candidate that shares all its words with one of the item's
    right answers, or they with it, is passed over; an item for which nothing is left makes no pair.
    """

    def offers(self) -> frozenset[Offer]:
        """Pairs, and both sides of each pair as labelled completions."""
        return frozenset({"pairs", "labelled"})

    def pairs(self) -> list[Pair]:
        """One pair per training item that has a wrong answer."""
        train = self.examples("train")
        pairs: list[Pair] = []
        for example in train:
            wrong = example.distractors[0] if example.distractors else self._borrowed(example, train)
            if wrong:
                pairs.append(Pair(example.question, self.spoken(example), wrong, example.group))
        return pairs

    def spoken(self, example: Example) -> str:
        """The gold as somebody would say it; override where golds carry more than the answer."""
        return example.answer

    def _borrowed(self, example: Example, others: Sequence[Example]) -> str:
        kind = answer_type(example)
        right = [set(normalise(text)) for text in (example.answer, *example.aliases)]
        length = len(self.spoken(example).split())
        candidates = {self.spoken(other) for other in others if answer_type(other) == kind}

        def nearest(answer: str) -> tuple[int, str]:
            return abs(len(answer.split()) - length), order(f"{example.question}\n{answer}", self.seed)

        for candidate in sorted(candidates, key=nearest):
            words = set(normalise(candidate))
            if words and not any(words <= gold or gold <= words for gold in right):
                return candidate
        return ""


def answer_type(example: Example) -> str:
    """The type that the data name; else ``number`` for answers with a digit, ``word`` or ``phrase`` for all others."""
    named = example.metadata.get("answer_type")
    if named:
        return str(named)
    if re.search(r"\d", example.answer):
        return "number"
    return "phrase" if len(example.answer.split()) > 1 else "word"


@dataclass(frozen=True, kw_only=True)
class HubQuestions(Questions, HubTask):
    """Questions that come from the hub unless ``path`` names a file or URL."""
