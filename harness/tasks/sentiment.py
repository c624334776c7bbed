"""Steering sentiment: from negative to positive, neutral text left alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.rows import Row, check_columns, file_rows, text_of
from harness.tasks.selection import in_turn
from harness.tasks.task import Kind, Offer, Role, Task

FILE = Path(__file__).with_name("sentiment.jsonl")
_ROLES = ("source", "target", "control")


@dataclass(frozen=True, kw_only=True)
class Sentiment(Task):
    """Openings to be continued, and texts to learn from.

    A *source* prompt opens a text that leans to the negative; its choices are a positive (``target``) and a negative
    continuation. A *control* prompt opens a neutral text; its one choice is a neutral reference continuation. ``group``
    holds the role. Prompts are continued as they are, without template; source and control prompts alternate, so that
    ``limit`` keeps both.

    Texts of the training split are negative (*source*), positive (*target*) and neutral (*control*). Pairs are the
    training split's source prompts with both continuations; without any, target and source texts in file order, cut
    where their words part: the shared opening is the prompt, and two texts that share none make no pair.

    A file of your own is JSON Lines of two kinds of rows, each with ``split`` (and ``id``, optional):
    ``{"kind": "text", "role": "source|target|control", "text"}`` and
    ``{"kind": "prompt", "role": "source", "prompt", "positive", "negative"}`` or, with role control, ``"reference"``.
    """

    name: ClassVar[str] = "sentiment"
    kind: ClassVar[Kind] = "both"
    raw: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("prompt", "role", "split")
    asks: ClassVar[str] = "prompt"

    def source(self) -> list[Row]:
        """The rows that ship with the project."""
        return file_rows(str(FILE))

    def convert(self, rows: list[Row]) -> list[Row]:
        """The prompts, source and control in turn."""
        check_columns(rows, ("kind", "role", "split"), self.origin)
        for number, row in enumerate(rows, start=1):
            if row["kind"] not in ("text", "prompt") or row["role"] not in _ROLES:
                raise ValueError(
                    f"{self.origin}: row {number}: kind must be text or prompt and role {', '.join(_ROLES)}, "
                    f"got {row['kind']} and {row['role']}"
                )
        prompts = [row for row in rows if row["kind"] == "prompt"]
        return in_turn(prompts, "role")

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per prompt."""
        names = ("positive", "negative") if row["role"] == "source" else ("reference",)
        check_columns([row], names, f"{self.origin}: prompt {index + 1}")
        choices = tuple(_continuation(text_of(row, name, self.origin, index + 1)) for name in names)

        example = Example(
            id=str(row.get("id") or f"sentiment-{index:04d}"),
            question=text_of(row, "prompt", self.origin, index + 1),
            answer=choices[0],
            distractors=choices[1:],
            choices=choices,
            target=0,
            group=row["role"],
            split=split,
        )
        return [example]

    def offers(self) -> frozenset[Offer]:
        """Pairs, texts, and labelled continuations."""
        return frozenset({"pairs", "texts", "labelled"})

    def pairs(self) -> list[Pair]:
        """The positive continuation against the negative one."""
        prompts = [example for example in self._examples["train"] if example.distractors]
        if prompts:
            return [Pair(item.question, item.answer, item.distractors[0]) for item in prompts]
        texts = zip(self.texts("target"), self.texts("source"), strict=False)
        parted = (_parted(positive, negative) for positive, negative in texts)
        return [pair for pair in parted if pair.prompt]

    def texts(self, role: Role) -> list[str]:
        """The training texts of a role, at most ``train_size``."""
        return [row["text"].strip() for row in self._texts if row["role"] == role][: self.train_size]

    def _has_training_rows(self) -> bool:
        return bool(self._texts)

    @cached_property
    def _texts(self) -> list[Row]:
        rows = file_rows(self.path) if self.path else self.source()
        texts = [row for row in rows if row.get("kind") == "text" and row.get("split") == "train"]
        check_columns(texts, ("text",), self.origin)
        return texts


def _parted(positive: str, negative: str) -> Pair:
    """Two texts as continuations of their shared opening, which may be empty and never is a whole text."""
    positive_words, negative_words = positive.split(), negative.split()
    shared = 0
    while (
        shared < min(len(positive_words), len(negative_words)) - 1 and positive_words[shared] == negative_words[shared]
    ):
        shared += 1
    endings = (" ".join(words[shared:]) for words in (positive_words, negative_words))
    return Pair(" ".join(positive_words[:shared]), *map(_continuation, endings))


def _continuation(text: str) -> str:
    """The continuation with the space that joins it to its prompt."""
    return text if text[0] in ".,;:!?'\u2019" else f" {text}"
