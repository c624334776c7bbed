"""How much of the gold answer's wording a completion holds."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer

from harness.text import normalise, overlap
from harness.types import Evaluator, Metric, Record, Score, Tools

_WORDS = NLTKWordTokenizer()
_MARKS = frozenset(string.punctuation)
_SENTENCES = PunktSentenceTokenizer()


@dataclass(frozen=True, kw_only=True)
class TokenOverlap(Evaluator):
    """Share of the gold's words in the completion, and whether the gold stands there as a whole.

    - ``overlap``: |gold words in the text| / |gold words|, over sets of words, the best over gold and aliases.
    - ``contains_gold``: 1 if the gold's or an alias's words stand in the text one after another, else 0.

    Range: both 0 to 1. Direction: higher is better; a long text can reach a high overlap by chance. Unscored: a gold
    (aliases included) without a word, under ``tokens=squad``. Cost: none to speak of.

    Source: Chang & Yasin 2025 (arXiv:2505.22572) for ``overlap``. The defaults differ from it: they score the
    completion alone and compare words as SQuAD does. ``scored_text=full tokens=nltk`` is the paper's rule: prompt and
    completion together, NLTK's word tokens in lower case without single punctuation marks (the two-character quotation
    marks that NLTK writes do count), 4 decimals, 0 for a gold without tokens; aliases are a matter of the task,
    SimpleQA has none. One deviation: NLTK's trained sentence model has to be downloaded, so sentences are cut by the
    untrained one, which does not know abbreviations ("Dr." becomes "dr" and a full stop).

    Args:
        scored_text: ``completion``, or ``full`` for prompt and completion.
        tokens: ``squad`` (lower case, no accents, punctuation or articles, numbers whole) or ``nltk``.
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("overlap", higher_is_better=True, low=0, high=1),
        Metric("contains_gold", higher_is_better=True, low=0, high=1, kind="proportion"),
    )

    gold: ClassVar[bool] = True

    scored_text: Literal["completion", "full"] = "completion"
    tokens: Literal["squad", "nltk"] = "squad"
    max_unscored: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that name no rule."""
        if self.scored_text not in ("completion", "full"):
            raise ValueError(f"token_overlap.scored_text must be completion or full, got {self.scored_text!r}")
        if self.tokens not in ("squad", "nltk"):
            raise ValueError(f"token_overlap.tokens must be squad or nltk, got {self.tokens!r}")

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Two scores per record."""
        return [score for record in records for score in self._scores(record)]

    def _scores(self, record: Record) -> list[Score]:
        example, text = record.example, record.generation.text
        if self.scored_text == "full":
            text = record.prompt + text
        answers = [self._words(answer) for answer in (example.answer, *example.aliases)]
        if self.tokens == "squad" and not any(answers):
            reason = f"the gold answer holds no word: {example.answer!r}"
            return [Score(example.id, metric.name, None, reason) for metric in self.metrics]

        contained = any(_contains(self._words(text), answer) for answer in answers)
        return [
            Score(example.id, "overlap", self._overlap(record, text)),
            Score(example.id, "contains_gold", float(contained)),
        ]

    def _words(self, text: str) -> Sequence[str]:
        return normalise(text) if self.tokens == "squad" else nltk_tokens(text)

    def _overlap(self, record: Record, text: str) -> float:
        example = record.example
        if self.tokens == "squad":
            return overlap(example.answer, example.aliases, text)
        words_of_text = set(nltk_tokens(text))
        answers = (set(nltk_tokens(answer)) for answer in (example.answer, *example.aliases))
        return max((round(len(words & words_of_text) / len(words), 4) for words in answers if words), default=0.0)


@lru_cache(maxsize=4096)
def nltk_tokens(text: str) -> tuple[str, ...]:
    """NLTK's word tokens in lower case, single punctuation marks left out."""
    tokens = (token for sentence in _SENTENCES.tokenize(text.lower()) for token in _WORDS.tokenize(sentence))
    return tuple(token for token in tokens if token not in _MARKS)


def _contains(words: Sequence[str], answer: Sequence[str]) -> bool:
    size = len(answer)
    return size > 0 and any(
        tuple(words[start : start + size]) == tuple(answer) for start in range(len(words) - size + 1)
    )
