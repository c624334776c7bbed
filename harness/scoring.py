"""From generations to scores: records, metrics, evaluators and judges. Part of the contract; knows no tensors."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Metric:
    """What an evaluator reports. ``kind`` decides the interval: a proportion gets Wilson's, a mean a bootstrap."""

    name: str
    higher_is_better: bool
    low: float
    high: float
    kind: Literal["mean", "proportion"] = "mean"


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
    """A judge's reply. ``value`` is one of the rubric's allowed answers, or None with a reason (and the raw reply)."""

    value: str | None
    reason: str = ""
    raw: str = ""
    expected: float | None = None
    entropy: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Grades answers. ``rubrics`` names what it can grade; ``identity`` goes into every score."""

    rubrics: frozenset[str]

    @property
    def identity(self) -> str:
        """Name and version, with the hash of the prompts in use."""
        ...

    def preflight(self) -> None:
        """Raise before any weights load if the judge cannot be reached."""
        ...

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading, in order."""
        ...


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
    """Scores the options of choice tasks, which records of other tasks do not have."""
    reads: ClassVar[RecordKind] = "generations"
    """Which records it is given: those of test items, or one per concept with what the method read in its texts."""
    max_unscored: float = 1.0
    """Largest share of records (0 to 1) that may stay unscored; beyond it the run is marked failed, records kept."""

    @property
    def rubrics(self) -> frozenset[str]:
        """Rubrics that the judge must be able to grade under these settings."""
        return frozenset()

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """One score per record and metric."""
        raise NotImplementedError

    def derived(self, scores: Sequence[Score]) -> dict[str, float]:
        """Figures of the whole set that are not a mean of scores (an F1, a slope), by metric name."""
        return {}
