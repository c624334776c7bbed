"""Examples, generations, trials and scores as lines of JSON: one writer and one reader for each.

The numbers of their formats stand in `FORMAT`; a generation folder's ``meta.json`` and a run's ``run.json`` carry it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.data import Example
from harness.records.lines import Row
from harness.scoring import Generation, Record, Score

FORMAT = 1
"""Bumped by hand when a reader of earlier lines would misread later ones."""

UNSTEERED = -1
"""Number of the trial that holds the un-steered text."""


@dataclass(frozen=True)
class Trial:
    """One evaluated parameter set.

    Args:
        number: from 0; `UNSTEERED` is the un-steered text.
        round: counts the barriers between which proposals were asked for together.
        generation: what it wrote.
        objective: its worth to the search.
        terms: the metrics that the objective was made from.
    """

    number: int
    round: int
    generation: Generation
    objective: float
    terms: Mapping[str, float | None]


@dataclass(frozen=True)
class Selected:
    """The generation that stands for an example.

    Args:
        record: example, generation and prompt.
        trial: number of the trial that it was.
        objective: what the search thought of it; None without a search.
    """

    record: Record
    trial: int
    objective: float | None = None


def example_row(example: Example) -> Row:
    """An example without its split: only test items are stored."""
    return {
        "example_id": example.id,
        "question": example.question,
        "answer": example.answer,
        "aliases": list(example.aliases),
        "distractors": list(example.distractors),
        "choices": list(example.choices),
        "target": example.target,
        "group": example.group,
        "concept": example.concept,
        "cluster": example.cluster,
        "choice_questions": list(example.choice_questions),
        "metadata": dict(example.metadata),
    }


def example_of(row: Mapping[str, Any]) -> Example:
    """The example of a line."""
    return Example(
        id=row["example_id"],
        question=row["question"],
        answer=row["answer"],
        aliases=tuple(row["aliases"]),
        distractors=tuple(row["distractors"]),
        choices=tuple(row["choices"]),
        target=row["target"],
        group=row["group"],
        concept=row["concept"],
        cluster=row["cluster"],
        choice_questions=tuple(row.get("choice_questions", ())),
        metadata=row["metadata"],
    )


def generation_row(generation: Generation) -> Row:
    """The fields of a generation that stand in every line about one."""
    return {
        "example_id": generation.example_id,
        "parameters": generation.parameters,
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish": generation.finish,
        "prompt_tokens": generation.prompt_tokens,
        "near_ties": generation.near_ties,
        "choice_logprobs": list(generation.choice_logprobs),
        "latents": list(generation.latents),
    }


def generation_of(row: Mapping[str, Any]) -> Generation:
    """The generation of a line."""
    return Generation(
        example_id=row["example_id"],
        parameters=row["parameters"],
        text=row["text"],
        token_ids=tuple(row["token_ids"]),
        finish=row["finish"],
        prompt_tokens=row["prompt_tokens"],
        near_ties=row["near_ties"],
        choice_logprobs=tuple(row["choice_logprobs"]),
        latents=tuple(row.get("latents", ())),
    )


def selected_row(selected: Selected) -> Row:
    """A line of ``generations.jsonl`` or ``latents.jsonl``."""
    record = selected.record
    chosen = {"prompt": record.prompt, "trial": selected.trial, "objective": selected.objective}
    return example_row(record.example) | generation_row(record.generation) | chosen


def selected_of(row: Mapping[str, Any]) -> Selected:
    """What a line of ``generations.jsonl`` or ``latents.jsonl`` holds."""
    record = Record(example_of(row), generation_of(row), row["prompt"])
    return Selected(record, row["trial"], row["objective"])


def trial_row(trial: Trial) -> Row:
    """A line of ``trials.jsonl``."""
    numbers = {"trial": trial.number, "round": trial.round, "objective": trial.objective, "terms": dict(trial.terms)}
    return generation_row(trial.generation) | numbers


def trial_of(row: Mapping[str, Any]) -> Trial:
    """What a line of ``trials.jsonl`` holds."""
    return Trial(row["trial"], row["round"], generation_of(row), row["objective"], row["terms"])


def score_row(score: Score) -> Row:
    """A line of ``scores.jsonl``."""
    return dataclasses.asdict(score)


def score_of(row: Mapping[str, Any]) -> Score:
    """What a line of ``scores.jsonl`` holds."""
    return Score(row["example_id"], row["metric"], row["value"], row["reason"], row["details"])
