"""SimpleQA: short fact-seeking questions with one indisputable answer."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.data import Example, Split
from harness.tasks.questions import HubQuestions
from harness.tasks.rows import Row, text_of


@dataclass(frozen=True, kw_only=True)
class SimpleQA(HubQuestions):
    """4,326 questions of SimpleQA (Wei et al. 2024, arXiv:2411.04368), in file order.

    The model's prompt is the bare question. A file is the official CSV with columns ``metadata`` (a Python literal with
    topic, answer_type and urls), ``problem`` and ``answer``. The data come in one piece: see `divide` for the split.
    """

    name: ClassVar[str] = "simpleqa"
    columns: ClassVar[tuple[str, ...]] = ("metadata", "problem", "answer")
    asks: ClassVar[str] = "problem"

    hub: str = "basicv8vc/SimpleQA"

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        example = Example(
            id=f"simpleqa-{index:04d}",
            question=text_of(row, "problem", self.origin, index + 1),
            answer=text_of(row, "answer", self.origin, index + 1),
            split=split,
            metadata=self._metadata(row["metadata"], index),
        )
        return [example]

    def _metadata(self, text: Any, index: int) -> dict[str, Any]:
        try:
            value = ast.literal_eval(text) if isinstance(text, str) else text
        except (ValueError, SyntaxError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{self.origin}: row {index + 1}: metadata must be a Python dict, got {str(text)[:60]!r}")
        return value
