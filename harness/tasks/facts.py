"""The project's own question-answer items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.questions import Questions
from harness.tasks.rows import Row, file_rows, text_of

FILE = Path(__file__).with_name("facts.jsonl")


def strings(row: Row, column: str, origin: str, index: int) -> tuple[str, ...]:
    """An optional column that holds a list of texts."""
    value = row.get(column) or []
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{origin}: row {index + 1}: {column} must be a list of texts, got {value!r}")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class Facts(Questions):
    """Short factual questions over ten topics and five answer types, with aliases and wrong answers.

    A file of your own is JSON Lines with ``question`` and ``answer``; ``id``, ``aliases``, ``distractors``, ``topic``,
    ``answer_type`` and ``split`` are optional.
    """

    name: ClassVar[str] = "facts"
    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    def source(self) -> list[Row]:
        """The rows that ship with the project."""
        return file_rows(str(FILE))

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row; topic and answer type are metadata."""
        answer = text_of(row, "answer", self.origin, index + 1)
        example = Example(
            id=str(row.get("id") or f"facts-{index:04d}"),
            question=text_of(row, "question", self.origin, index + 1),
            answer=answer,
            aliases=tuple(alias for alias in strings(row, "aliases", self.origin, index) if alias != answer),
            distractors=strings(row, "distractors", self.origin, index),
            split=split,
            metadata={key: row[key] for key in ("topic", "answer_type") if row.get(key)},
        )
        return [example]
