"""The laws of evaluators. Each takes an evaluator and raises AssertionError if it breaks the law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.evaluate import evaluate
from harness.judges.prompts import RUBRICS
from harness.laws.lab import expected
from harness.records.run import EvaluatorNote
from harness.types import Evaluator, Example, Generation, Grading, Record, Score, Tools, Verdict

TEXTS = (
    "The capital of Vessla is Port Arnmouth.",
    "arnmouth",
    "I am delighted to say that it is lovely Arnmouth, a wonderful town!",
    "It was a horrible, miserable failure and I hated it.",
    "No. No. No. No. No. No. No. No.",
    "I cannot answer that question.",
    "42",
    "Ärnmöuth — naïve “quotes”, 東京, and an emoji 🙂",
)
EMPTY = ("", " \n\t ")
Key = tuple[str, str]


@dataclass(frozen=True)
class RuleJudge:
    """Gives the same place in each rubric's list of allowed grades, or none at all."""

    place: int | None = 0
    rubrics: ClassVar[frozenset[str]] = frozenset(RUBRICS)

    @property
    def identity(self) -> str:
        """Which grade it gives."""
        return f"rule {self.place}"

    def preflight(self) -> None:
        """Always ready."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading."""
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        if self.place is None:
            return Verdict(None, "the judge did not answer")
        allowed = sorted(set(RUBRICS[grading.rubric].answers.values()))
        return Verdict(allowed[self.place], raw=allowed[self.place])


@dataclass(frozen=True)
class RuleScorer:
    """So many nats for each character; no tokens at all under ``deaf``."""

    nats: float = 0.7
    deaf: bool = False
    name: ClassVar[str] = "rule"

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """A likelihood that falls with length."""
        del prompts
        return [(0.0, 0) if self.deaf else (-self.nats * len(text), len(text)) for text in completions]


def tools_for(evaluator: Evaluator, judge: RuleJudge | None = None, scorer: RuleScorer | None = None) -> Tools:
    """What the evaluator says it needs, and nothing else."""
    return Tools(
        scorer=(scorer or RuleScorer()) if "scorer" in evaluator.needs else None,
        judge=(judge or RuleJudge()) if "judge" in evaluator.needs else None,
    )


GROUPS = ("source", "control", "harmful", "harmless")
"""Groups that evaluators tell apart; control prompts have one option, all others two."""


def record(index: int, text: str, logprobs: tuple[float, ...] | None = None) -> Record:
    """A record of a task that asks for both text and choices; groups take turns."""
    group = GROUPS[index % len(GROUPS)]
    choices = (" Arnmouth",) if group == "control" else (" Arnmouth", " Belltown")
    condition = "ambiguous" if group == "harmful" else "disambiguated"
    example = Example(
        id=f"item-{index:02d}",
        question="What is the capital of Vessla?",
        answer="Port Arnmouth",
        aliases=("Great Port Arnmouth", "Arnmouth 42"),
        distractors=("Belltown",),
        choices=choices,
        target=0,
        group=group,
        concept="names of towns",
        metadata={"condition": condition, "stereotyped": 0, "unknown": None},
    )
    choice_logprobs = tuple(-1.5 - index - place for place in range(len(choices))) if logprobs is None else logprobs
    generation = Generation(example.id, {"strength": 0.5}, text, (1, 2, 3), "length", 7, 0, choice_logprobs)
    return Record(example, generation, "<user>What is the capital of Vessla?<assistant>")


def of_kind(evaluator: Evaluator, item: Record) -> Record:
    """The record with what the evaluator reads in it: latents of texts of all categories, or siblings to compare."""
    place = int(item.example.id.split("-")[1])
    if evaluator.compares_samples:
        return dataclasses.replace(item, example=dataclasses.replace(item.example, cluster=f"item-of-{place % 5}"))
    if evaluator.reads == "generations":
        return item
    categories = [("positive", "negative", "hard negative")[number % 3] for number in range(9)]
    example = dataclasses.replace(item.example, metadata={"categories": categories})
    latents = tuple(math.sin(place + number) for number in range(9))
    return Record(example, dataclasses.replace(item.generation, finish="latents", latents=latents), item.prompt)


def records(evaluator: Evaluator) -> list[Record]:
    """One of each text in each group."""
    texts = (text for text in TEXTS for _ in GROUPS)
    return [of_kind(evaluator, record(index, text)) for index, text in enumerate(texts)]


def with_text(item: Record, text: str) -> Record:
    """The record with another completion."""
    return dataclasses.replace(item, generation=dataclasses.replace(item.generation, text=text))


def with_logprobs(item: Record, logprobs: tuple[float, ...]) -> Record:
    """The record with other log-probabilities of its choices."""
    return dataclasses.replace(item, generation=dataclasses.replace(item.generation, choice_logprobs=logprobs))


def values(evaluator: Evaluator, items: Sequence[Record], tools: Tools | None = None) -> dict[Key, Score]:
    """Scores by example and metric."""
    scored = evaluator.score(items, tools or tools_for(evaluator))
    scores = {(score.example_id, score.metric): score for score in scored}
    assert len(scores) == len(scored), "two scores for one record and metric"
    return scores


def one_score_per_record_and_metric(evaluator: Evaluator) -> None:
    """Every record gets every metric once, in the order of the records, also in an empty set."""
    items = records(evaluator)
    scored = evaluator.score(items, tools_for(evaluator))
    names = [metric.name for metric in evaluator.metrics]
    assert len(set(names)) == len(names) > 0
    assert {score.metric for score in scored} == set(names)
    for name in names:
        column = [score.example_id for score in scored if score.metric == name]
        assert column == [item.example.id for item in items]
    assert evaluator.score([], tools_for(evaluator)) == []


def order_does_not_matter(evaluator: Evaluator) -> None:
    """A record's scores are the same in any order, and alone, or with the samples that it is compared with."""
    items = records(evaluator)
    together = values(evaluator, items)
    assert values(evaluator, items[::-1]) == together

    units = sorted({item.example.unit for item in items}) if evaluator.compares_samples else []
    parts = [[item for item in items if item.example.unit == unit] for unit in units] or [[item] for item in items]
    apart: dict[Key, Score] = {}
    for part in parts:
        apart |= values(evaluator, part)
    assert apart == together


def values_stay_in_range(evaluator: Evaluator) -> None:
    """No value lies outside what the metric documents, whatever judge and scorer say; some records are scored."""
    bounds = {metric.name: (metric.low, metric.high) for metric in evaluator.metrics}
    items = [*records(evaluator), *(of_kind(evaluator, record(90 + index, text)) for index, text in enumerate(EMPTY))]
    scored = set()
    for tools in _tools(evaluator):
        for score in values(evaluator, items, tools).values():
            if score.value is not None:
                low, high = bounds[score.metric]
                assert low <= score.value <= high, score
                scored.add(score.metric)
    assert scored == set(bounds), "a metric that no record ever gets proves nothing"


def records_stay_as_they_are(evaluator: Evaluator) -> None:
    """Scoring the same records again gives the same; they are not written to."""
    items = records(evaluator)
    before = repr(items)
    first = values(evaluator, items)
    assert repr(items) == before
    assert values(evaluator, items) == first


def silent_tools_leave_records_unscored(evaluator: Evaluator) -> None:
    """What hangs on a judge or scorer that says nothing has no value, and says why."""
    silent = tools_for(evaluator, RuleJudge(None), RuleScorer(deaf=True))
    hanging = _depending(evaluator, _tools(evaluator))
    assert hanging, "an evaluator that needs a tool must show it in some metric"
    for score in values(evaluator, records(evaluator), silent).values():
        if score.metric in hanging:
            assert score.value is None, f"{score.metric} got {score.value} from a tool that said nothing"
            assert score.reason.strip()


def missing_tools_are_an_error(evaluator: Evaluator) -> None:
    """An evaluator without the tool that it needs says which, instead of scoring."""
    with expected(ValueError, *sorted(evaluator.needs)):
        evaluator.score(records(evaluator), Tools())


def empty_completions_are_unscored_or_worst(evaluator: Evaluator) -> None:
    """An empty completion earns nothing: no value with a reason, or the worst there is, unless a judge says otherwise.

    Metrics that do not look at the completion keep their value.
    """
    declared = {metric.name: metric for metric in evaluator.metrics}
    spoken = values(evaluator, records(evaluator))
    judged = _depending(evaluator, _tools(evaluator)) if "judge" in evaluator.needs else set()
    for text in EMPTY:
        for key, score in values(evaluator, [with_text(item, text) for item in records(evaluator)]).items():
            if score.value is None:
                assert score.reason.strip()
            elif score.metric not in judged and score.value != spoken[key].value:
                metric = declared[score.metric]
                assert score.value == (metric.low if metric.higher_is_better else metric.high), score


def missing_choices_are_unscored(evaluator: Evaluator) -> None:
    """Metrics of options have no value where log-probabilities are missing or not finite."""
    base = records(evaluator)
    other = [with_logprobs(item, tuple(-0.1 * (3 - i) for i in range(len(item.example.choices)))) for item in base]
    first, second = values(evaluator, base), values(evaluator, other)
    hanging = {key for key, score in first.items() if score.value is not None and score.value != second[key].value}
    metrics = {metric for _, metric in hanging}
    assert metrics
    for broken in ((), (math.nan, math.nan), (-math.inf, -1.0), (-1.0, -2.0, -3.0)):
        items = [with_logprobs(item, broken[:1] if len(item.example.choices) == 1 else broken) for item in base]
        if broken == (-1.0, -2.0, -3.0):  # too many, which a single option cannot have after the cut above
            items = [item for item in items if len(item.example.choices) == 2]
        for score in values(evaluator, items).values():
            if score.metric in metrics:
                assert score.value is None, f"{score.metric} got {score.value} from log-probabilities {broken}"
                assert score.reason.strip()


def derived_figures_are_finite(evaluator: Evaluator) -> None:
    """Figures of the whole set are numbers with names of their own, and there are none where nothing was scored."""
    names = {metric.name for metric in evaluator.metrics}
    for tools in _tools(evaluator):
        figures = evaluator.derived(evaluator.score(records(evaluator), tools))
        assert not names & figures.keys()
        assert all(math.isfinite(value) for value in figures.values())
    unscored = [Score(item.example.id, name, None, "not scored") for item in records(evaluator) for name in names]
    assert evaluator.derived(unscored) == {}


def runs_through_the_harness(evaluator: Evaluator) -> None:
    """The harness accepts its scores and makes estimates of them within the metric's range."""
    evaluation = evaluate(records(evaluator), {"it": evaluator}, tools_for, seed=0)
    assert set(evaluation.estimates) == {metric.name for metric in evaluator.metrics}
    for metric in evaluator.metrics:
        made = evaluation.estimates[metric.name]
        assert made.num_scored + made.num_unscored == len(records(evaluator))
        if made.value is not None:
            assert metric.low <= made.value <= metric.high
    assert [note.name for note in EvaluatorNote.of(evaluator).metrics] == list(evaluation.estimates)


def _tools(evaluator: Evaluator) -> list[Tools]:
    """Judges and scorers that say different things."""
    return [tools_for(evaluator, RuleJudge(place), RuleScorer(nats)) for place, nats in ((0, 0.7), (1, 2.0), (-1, 0.0))]


def _depending(evaluator: Evaluator, tools: Sequence[Tools]) -> set[str]:
    """Metrics that change with what the tools say."""
    first, *others = [values(evaluator, records(evaluator), given) for given in tools]
    return {key[1] for key, score in first.items() if any(other[key].value != score.value for other in others)}


LAWS = (
    one_score_per_record_and_metric,
    order_does_not_matter,
    values_stay_in_range,
    records_stay_as_they_are,
    empty_completions_are_unscored_or_worst,
    derived_figures_are_finite,
    runs_through_the_harness,
)
"""Laws of every evaluator."""
WITH_TOOLS = (silent_tools_leave_records_unscored, missing_tools_are_an_error)
"""Laws of evaluators that need a judge or a scorer."""
WITH_CHOICES = (missing_choices_are_unscored,)
"""Laws of evaluators that score options."""
