"""What methods share that read a concept in words, and learn one network for all concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data import Demonstration, Example
from harness.model_view import Subject
from harness.steering import Site
from harness.text_learner import TextLearner
from harness.training import Learner, Part

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def concept_states(
    subject: Subject, concepts: Sequence[str], site: Site, limit: int
) -> tuple[Float[Tensor, "N C D"], Int[Tensor, "N"]]:
    """States of the tokens of each concept's words, read without template, in float32.

    Args:
        subject: the model, un-steered.
        concepts: in words.
        site: where they are read.
        limit: tokens of a concept that count; its other tokens are cut off.

    Returns:
        States, zero behind the last token of a concept, and how many tokens it has.
    """
    width = subject.layout.site_width(site)
    states = torch.zeros(len(concepts), limit, width, device=subject.device)
    lengths = torch.zeros(len(concepts), dtype=torch.long, device=subject.device)
    for chunk in subject.capture_tokens(concepts, None, [site], raw=True):
        first = chunk.where(chunk.position < limit)
        states[first.text, first.position] = first.states[site]
        lengths += torch.bincount(first.text, minlength=len(concepts))
    return states, lengths


def words_of(examples: Sequence[Example]) -> list[str]:
    """The concept of each example.

    Raises:
        ValueError: an example has none.
    """
    for example in examples:
        if not example.concept.strip():
            raise ValueError(f"item {example.id} names no concept; this method needs a task with concepts in words")
    return [example.concept for example in examples]


class ConceptLearner(TextLearner):
    """One network for all concepts, learnt from texts of all of them in mixed batches.

    Args:
        subject: the model.
        texts: what to learn from, each with its concept.
    """

    def __init__(self, subject: Subject, texts: Sequence[Demonstration]) -> None:
        for text in texts:
            if not text.concept.strip():
                raise ValueError(f"a text of group {text.group!r} names no concept; this method learns from the words")
        super().__init__(subject, [dataclasses.replace(text, group="") for text in texts])
        self.concepts = sorted({text.concept for text in texts})
        numbers = {concept: number for number, concept in enumerate(self.concepts)}
        self.concept = torch.tensor([numbers[text.concept] for text in texts], device=subject.device)

    def clip_gradients(self, limit: float) -> None:
        """Over all parameters together: they are the same for every concept."""
        Learner.clip_gradients(self, limit)

    def concepts_in(self, part: Part) -> tuple[list[str], Int[Tensor, "B"]]:
        """The concepts that the texts of a pass have, each once, and which of these each text has."""
        numbers, place = self.concept[list(part.rows)].unique(return_inverse=True)
        return [self.concepts[number] for number in numbers.tolist()], place
