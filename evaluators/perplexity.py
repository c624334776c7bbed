"""How likely a completion is to an un-steered model, how much it repeats itself, and whether it is a text at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.types import Evaluator, Metric, Record, Score, Tools

_LOOP = 0.5
"""Share of repeated 3-grams above which a text counts as a loop."""


@dataclass(frozen=True, kw_only=True)
class Perplexity(Evaluator):
    """Perplexity under the scorer, with the share of broken texts and of repeated 3-grams beside it.

    - ``perplexity``: exp of the mean negative log-likelihood (nats) per token of the completion, given the prompt,
      under an un-steered scorer. 1 or more, without upper bound; lower is better. Over records it is a geometric mean,
      that is the mean of nats per token: an arithmetic one is that of the few most broken texts. Differences are ratios
      of geometric means.
    - ``broken``: 1 if there is no text worth reading: nothing at all, more than half of its 3-grams repeated (a loop),
      or a perplexity above ``broken_above``; else 0. Perplexity must be read with it, for silence and loops have a low
      one or none.
    - ``empty``: 1 if the completion is empty, else 0; part of ``broken``.
    - ``repetition``: share of the 3-grams of white-space words that repeat an earlier one; 0 to 1; lower is better.
      Texts of one or two words repeat none.

    Direction: lower is better, for all. Unscored: ``repetition`` of a blank completion; ``perplexity`` of a blank text,
    which under ``scored_text=full`` is that of prompt and completion together, or where the scorer finds no token or an
    impossible one, which counts as broken too. Cost: one forward
    pass of the scorer over prompt and completion.

    Args:
        scored_text: ``completion`` given the prompt, or ``full``: prompt and completion as one text without context, as
            Chang & Yasin 2025 (arXiv:2505.22572) score it, with GPT-2 small as the scorer.
        broken_above: perplexity above which a text counts as broken; None: none does for that reason. It changes
            nothing but ``broken``, which no search looks at.
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("perplexity", higher_is_better=False, low=1, high=math.inf, kind="geometric", beside="broken"),
        Metric("broken", higher_is_better=False, low=0, high=1, kind="proportion"),
        Metric("empty", higher_is_better=False, low=0, high=1, kind="proportion"),
        Metric("repetition", higher_is_better=False, low=0, high=1),
    )
    needs: ClassVar[frozenset[Literal["scorer", "judge"]]] = frozenset({"scorer"})
    version: ClassVar[int] = 2

    scored_text: Literal["completion", "full"] = "completion"
    broken_above: float | None = None
    max_unscored: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a text that is not there to be scored, and a limit below any perplexity."""
        if self.scored_text not in ("completion", "full"):
            raise ValueError(f"perplexity.scored_text must be completion or full, got {self.scored_text!r}")
        if self.broken_above is not None and not self.broken_above > 1:
            raise ValueError(f"perplexity.broken_above must be above 1 or null, got {self.broken_above}")

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Four scores per record.

        Raises:
            ValueError: there is no scorer.
        """
        if tools.scorer is None:
            raise ValueError("perplexity needs a scorer, got none: choose one with scorer=...")
        scored = [record for record in records if self._text(record).strip()]
        prompts = ["" if self.scored_text == "full" else record.prompt for record in scored]
        likelihoods = iter(tools.scorer.loglikelihood(prompts, [self._text(record) for record in scored]))
        return [score for record in records for score in self._scores(record, likelihoods)]

    def _text(self, record: Record) -> str:
        """What the scorer reads without its context: a prompt is there to be scored even if nothing follows it."""
        text = record.generation.text
        return record.prompt + text if self.scored_text == "full" else text

    def _scores(self, record: Record, likelihoods: Iterator[tuple[float, int]]) -> list[Score]:
        name, completion = record.example.id, record.generation.text
        blank = "the completion is empty"
        is_scored = bool(self._text(record).strip())
        likely = _perplexity(name, *next(likelihoods)) if is_scored else Score(name, "perplexity", None, blank)
        if not completion.strip():
            silent = Score(name, "repetition", None, blank)
            return [likely, Score(name, "broken", 1.0), Score(name, "empty", 1.0), silent]

        repeated = repetition(completion)
        limit = math.inf if self.broken_above is None else self.broken_above
        broken = likely.value is None or likely.value > limit or repeated > _LOOP
        return [
            likely,
            Score(name, "broken", float(broken)),
            Score(name, "empty", 0.0),
            Score(name, "repetition", repeated),
        ]


def _perplexity(example_id: str, loglikelihood: float, num_tokens: int) -> Score:
    if num_tokens == 0:
        return Score(example_id, "perplexity", None, "the scorer finds no token in the completion")
    nll = max(0.0, -loglikelihood / num_tokens)  # rounding can lift a certain token's probability above 1
    if not nll < math.log(1e300):
        return Score(example_id, "perplexity", None, f"no finite perplexity: {nll} nats per token")
    return Score(example_id, "perplexity", math.exp(nll), details={"nll": nll, "tokens": num_tokens})


def repetition(text: str) -> float:
    """Share of the 3-grams of white-space words that repeat an earlier one, 0 to 1."""
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
