"""From generations to scores: records, metrics, evaluators and judges. Part of the contract; knows no tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from harness.data import Example, Parameters

RecordKind = Literal["generations", "latents"]


@dataclass(frozen=True)
class Generation:
    """What one row produced. ``choice_logprobs`` holds the summed log-probability of each choice of a choice task.

    ``latents`` holds what a method read in each text of an example of `harness.types.Task.latent_examples`.
    """

    example_id: str
    parameters: Parameters
    text: str
    token_ids: tuple[int, ...]
    finish: Literal["stop", "length", "pruned", "choice", "latents"]
    prompt_tokens: int = 0
    near_ties: int = 0
    choice_logprobs: tuple[float, ...] = ()
    latents: tuple[float, ...] = ()


@dataclass(frozen=True)
class Record:
    """A generation with the example it answers and the exact prompt text: all that an evaluator sees."""

    example: Example
    generation: Generation
    prompt: str

    @property
    def kind(self) -> RecordKind:
        """What it holds: what was written for a test item, or what the method read in the texts of a concept."""
        return "latents" if self.generation.finish == "latents" else "generations"


MetricKind = Literal["mean", "proportion", "geometric"]


@dataclass(frozen=True)
class Metric:
    """What an evaluator reports.

    Args:
        name: unique among the evaluators of a run.
        higher_is_better: its direction.
        low: lowest possible score.
        high: highest possible score, maybe infinite.
        kind: decides how scores are averaged and which interval they get: a ``proportion`` of zeros and ones gets
            Wilson's, a ``mean`` a bootstrap. A ``geometric`` mean is for scores above 0 whose ratios matter, as
            perplexities: they are averaged, compared and tested as logarithms, and shown as what they were.
        beside: a metric of the same evaluator that must be read with this one, and stands beside it in every table.
        rubrics: the judge's rubrics whose ratings make this score; what was measured of the judge on them stands beside
            it. Empty for scores of labels, and for those without a judge.
    """

    name: str
    higher_is_better: bool
    low: float
    high: float
    kind: MetricKind = "mean"
    beside: str = ""
    rubrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """One metric of one record: a value, or None with the reason why there is none. Never a default value."""

    example_id: str
    metric: str
    value: float | None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a score that is neither a finite number nor explained."""
        if self.value is None and not self.reason:
            raise ValueError(f"{self.metric} of {self.example_id}: an unscored record needs a reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.metric} of {self.example_id}: a score must be finite, got {self.value}")

    def audited(self, second: Score, judge: str) -> Score:
        """This score with what the verdict of a second judge would have made of it, under "audit" in the details."""
        audit = {"judge": judge, "score": second.value, "reason": second.reason}
        return dataclasses.replace(self, details={**self.details, "audit": audit})


def audited_score(details: Mapping[str, Any]) -> float | None:
    """What the second judge's verdict makes of a score, from the score's details; None where it gave none."""
    score = (details.get("audit") or {}).get("score")
    return None if score is None else float(score)


@dataclass(frozen=True)
class Estimate:
    """A metric over all records with its 95 % interval."""

    metric: str
    value: float | None
    low: float | None
    high: float | None
    num_scored: int
    num_unscored: int


@runtime_checkable
class Scorer(Protocol):
    """An un-steered language model that judges how likely a text is."""

    @property
    def name(self) -> str:
        """Which model scores."""
        ...

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """Summed log-probability in nats and number of tokens of each completion; prompts are taken as they are."""
        ...


@dataclass(frozen=True)
class Grading:
    """One question to a judge: a rubric's name, the item, and the untrusted answer."""

    rubric: str
    question: str
    gold: str
    aliases: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Verdict:
    """A judge's reply. ``value`` is one of the rubric's allowed answers, or None with a reason (and the raw reply).

    ``audit`` is a second judge's verdict on the same answer, where it was asked for one.
    """

    value: str | None
    reason: str = ""
    raw: str = ""
    expected: float | None = None
    entropy: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    audit: Verdict | None = None


class Judge:
    """Grades answers. A judge derives from this class, states ``rubrics`` and ``identity``, and fills in ``grade``.

    The others may stay as they are. A judge that says nothing of its ``calibration`` counts as "not calibrated" and is
    marked so wherever its numbers appear; whether it is to be trusted is never taken for granted.
    """

    rubrics: ClassVar[frozenset[str]] = frozenset()
    """What it can grade, by the names that a `Grading` uses."""
    usage: Any = None
    """What was used since it was made: an object with ``calls`` and ``cost`` (US dollars, None if unknown), or None."""

    @property
    def identity(self) -> str:
        """Name and version, with the hash of the prompts in use; stored with every score."""
        raise NotImplementedError(f"{type(self).__name__} must say who grades: a property 'identity'")

    @property
    def calibration(self) -> Mapping[str, Any]:
        """How well this version agrees with people: at least ``judge`` and ``mark``; see `harness.judges.trust`."""
        return {"judge": self.identity, "mark": "not calibrated"}

    def preflight(self) -> None:
        """Raise before any weights load if the judge cannot be reached."""

    def forecast(self, gradings: Sequence[Grading]) -> object:
        """What these gradings would need, as something that reads well as a text."""
        return f"{len(gradings)} gradings, cost unknown"

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading, in order."""
        raise NotImplementedError(f"{type(self).__name__} must grade: a method 'grade'")


@dataclass(frozen=True)
class Tools:
    """What an evaluator may call on: opened by the harness only if the evaluator ``needs`` them."""

    scorer: Scorer | None = None
    judge: Judge | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A function of records. It never sees the steered model, so every score can be recomputed from disk."""

    version: ClassVar[int] = 1
    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs: ClassVar[frozenset[Literal["scorer", "judge"]]] = frozenset()
    choices: ClassVar[bool] = False
    """Scores the options of choice tasks, which records of other tasks do not have; all others score what was written,
    which records of choice tasks do not have."""
    gold: ClassVar[bool] = False
    """Compares with the right answer, which items of some tasks do not have."""
    compares_samples: ClassVar[bool] = False
    """Scores a sample by the other samples of its item, which must be scored with it."""
    reads: ClassVar[RecordKind] = "generations"
    """Which records it is given: those of test items, or one per concept with what the method read in its texts."""
    max_unscored: float = 1.0
    """Largest share of records (0 to 1) that may stay unscored; beyond it the run is marked failed, records kept."""

    @property
    def rubrics(self) -> frozenset[str]:
        """Rubrics that the judge must be able to grade under these settings."""
        return frozenset()

    def check(self, examples: Sequence[Example]) -> None:
        """Raise ValueError for items that cannot be scored, or where something that scoring takes is not to be had.

        Called before any weights load, with the items as the task has them, so it must be quick.
        """

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """One score per record and metric."""
        raise NotImplementedError

    def derived(self, scores: Sequence[Score]) -> dict[str, float]:
        """Figures of the whole set that are not a mean of scores (an F1, a slope), by metric name."""
        return {}
