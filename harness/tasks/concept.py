"""A concept in words, to be brought into answers to prompts that have nothing to do with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.rows import Row, file_rows, text_of
from harness.tasks.selection import order
from harness.tasks.task import Offer, Task, check_name

FILE = Path(__file__).with_name("concept.jsonl")
_FRAMES = (
    "What comes to my mind first is {}.",
    "Let me begin with {}, since I can think of little else.",
    "All of this reminds me of {}.",
    "The best example that I know is {}.",
    "To be honest, I would rather speak of {}.",
    "In the end it comes down to {}.",
)
_OTHERS = (
    "the weather",
    "a wooden table",
    "the number seven",
    "an old railway line",
    "a glass of water",
    "the month of March",
    "a grey pullover",
    "the way to the station",
    "a box of nails",
    "the rules of chess",
    "a flat stone",
    "the smell of paper",
)


@dataclass(frozen=True, kw_only=True)
class Concept(Task):
    """Open prompts of the project's own wording, each with the concept that steering should bring about.

    Only methods that declare ``Access.CONCEPT`` see the concept's words. All others learn from pairs: a training prompt
    with one sentence that speaks of the concept, and the same sentence about something else, by the SHA-256 of seed
    and prompt. The concept's words are the gold as well: ``token_overlap`` says how many of them an answer holds, a
    plain measure that synonyms escape. A control that shows the gold is told the concept.

    A file of prompts has the column ``prompt``; ``id`` and ``split`` are optional.

    Args:
        concept: a noun phrase that fits behind "speak of", e.g. "the sea and sailing".
        name: what the run is called in tables and folders.
    """

    name: str = "concept"  # pyright: ignore[reportIncompatibleVariableOverride]: here the user names the task
    columns: ClassVar[tuple[str, ...]] = ("prompt",)
    asks: ClassVar[str] = "prompt"

    concept: str = ""

    def source(self) -> list[Row]:
        """The prompts that ship with the project."""
        return file_rows(str(FILE))

    def check(self) -> None:
        """Refuse a concept without words and a name that cannot stand in a folder's, then as every task."""
        check_name(self.name)
        if not self.concept.strip():
            raise ValueError(f"task.concept must say in words what answers should speak of, got {self.concept!r}")
        super().check()

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per prompt."""
        concept = self.concept.strip()
        example = Example(
            id=str(row.get("id") or f"concept-{index:04d}"),
            question=text_of(row, "prompt", self.origin, index + 1),
            answer=concept,
            split=split,
            concept=concept,
        )
        return [example]

    def offers(self) -> frozenset[Offer]:
        """Pairs, and both sides of each pair as labelled completions."""
        return frozenset({"pairs", "labelled"})

    def pairs(self) -> list[Pair]:
        """For each training prompt a sentence on the concept and the same on something else."""
        return [self._pair(item) for item in self.examples("train")]

    def _pair(self, item: Example) -> Pair:
        draw = int(order(item.question, self.seed), 16)
        frame, other = _FRAMES[draw % len(_FRAMES)], _OTHERS[draw // len(_FRAMES) % len(_OTHERS)]
        return Pair(item.question, frame.format(item.concept), frame.format(other))
