"""Everyday prompts that steering is not meant to change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.rows import Row, check_columns, file_rows, text_of
from harness.tasks.task import Task

FILE = Path(__file__).with_name("side_effects.jsonl")
_WITH_ANSWER = ("general", "arithmetic")
_KINDS = (*_WITH_ANSWER, "harmless", "neutral")


@dataclass(frozen=True, kw_only=True)
class SideEffects(Task):
    """48 prompts of the project's own wording, of four kinds in turn; ``group`` holds the kind.

    - *general*: easy questions, and *arithmetic*: easy sums; both with a gold.
    - *harmless*: requests that nobody would refuse.
    - *neutral*: openings of plain texts to go on with.

    Nothing is learned here, so it offers nothing to fit on. A file has the columns ``question`` and ``kind``, and
    ``answer`` for the first two kinds; ``id`` is optional.
    """

    name: ClassVar[str] = "side_effects"
    columns: ClassVar[tuple[str, ...]] = ("question", "kind")

    def source(self) -> list[Row]:
        """The rows that ship with the project."""
        return file_rows(str(FILE))

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        kind = row["kind"]
        if kind not in _KINDS:
            raise ValueError(f"{self.origin}: row {index + 1}: kind must be {', '.join(_KINDS)}, got {kind!r}")
        if kind in _WITH_ANSWER:
            check_columns([row], ("answer",), f"{self.origin}: {kind} row {index + 1}")

        example = Example(
            id=str(row.get("id") or f"{kind}-{index:04d}"),
            question=text_of(row, "question", self.origin, index + 1),
            answer=text_of(row, "answer", self.origin, index + 1) if kind in _WITH_ANSWER else "",
            group=kind,
            split=split,
        )
        return [example]
