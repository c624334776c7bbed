"""How much the samples of one item differ from each other in their words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.text import normalise
from harness.types import Evaluator, Example, Metric, Record, Score, Tools

Item = tuple[str, str]
"""What samples of one item share: the unit that intervals draw, and the question."""


@dataclass(frozen=True, kw_only=True)
class Diversity(Evaluator):
    """Variety among the samples that ``task.num_samples`` draws for an item; it says nothing of how good they are.

    - ``diversity``: 1 less the share of words that two samples have in common (Jaccard, over sets of words), the mean
      over the other samples that say anything. 0 for a sample that holds no word, and where no other sample does, so
      that silence is no variety.
    - ``distinct_2``: different pairs of neighbouring words / all such pairs, over all samples of the item together, as
      in Li et al. 2016 (arXiv:1510.03055), there over all answers of a test set.

    Words are those of SQuAD: lower case, no accents, punctuation or articles. Range: both 0 to 1. Direction: higher is
    more varied; random letters would be the best there is, so read a metric of quality or fluency beside it. Unscored:
    the only sample of an item; for ``distinct_2`` an item without two neighbouring words. Cost: none to speak of.

    Args:
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("diversity", higher_is_better=True, low=0, high=1),
        Metric("distinct_2", higher_is_better=True, low=0, high=1),
    )
    compares_samples: ClassVar[bool] = True

    max_unscored: float = 1.0

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse a task that draws one sample for every item."""
        if examples and len({item_of(example) for example in examples}) == len(examples):
            raise ValueError(
                "evaluator=diversity compares the samples of an item, and there is one of each: set "
                "task.num_samples to 2 or more, and task.temperature above 0"
            )

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Two scores per record."""
        if len({record.example.id for record in records}) < len(records):
            raise ValueError(
                "diversity compares samples: each record must be a sample of its own, some are there twice"
            )
        by_item: dict[Item, list[Record]] = {}
        for record in records:
            by_item.setdefault(item_of(record.example), []).append(record)
        words = {record.example.id: normalise(record.generation.text) for record in records}
        return [score for record in records for score in self._scores(record, by_item[item_of(record.example)], words)]

    def _scores(self, record: Record, samples: Sequence[Record], words: dict[str, list[str]]) -> list[Score]:
        name = record.example.id
        if len(samples) == 1:
            reason = "the only sample of its item"
            return [Score(name, metric.name, None, reason) for metric in self.metrics]

        others = [words[other.example.id] for other in samples if other.example.id != name]
        share = distinct_pairs([words[sample.example.id] for sample in samples])
        reason = "" if share is not None else "no sample of the item holds two words"
        return [Score(name, "diversity", distance(words[name], others)), Score(name, "distinct_2", share, reason)]


def item_of(example: Example) -> Item:
    """What the samples of one item have in common."""
    return example.unit, example.question


def distance(own: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    """Mean Jaccard distance of a text's words from those of other texts, 0 to 1; those without words do not count."""
    spoken = [set(other) for other in others if other]
    if not own or not spoken:
        return 0.0
    mine = set(own)
    # Summed in one order, whatever the order of the samples, so that the last digit does not depend on it.
    return sum(sorted(1 - len(mine & other) / len(mine | other) for other in spoken)) / len(spoken)


def distinct_pairs(texts: Sequence[Sequence[str]]) -> float | None:
    """Share of the pairs of neighbouring words that are different ones; None where there is no pair."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else None
