"""SimpleQA Verified: the cleaned and corrected thousand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.questions import HubQuestions
from harness.tasks.rows import Row, text_of

_RANGE = re.compile(r"^(?P<gold>.*?)\s*\(acceptable range:\s*(?P<range>.*)\)\s*$", re.IGNORECASE | re.DOTALL)
_METADATA = ("original_index", "topic", "answer_type", "multi_step", "requires_reasoning", "urls")


@dataclass(frozen=True, kw_only=True)
class SimpleQAVerified(HubQuestions):
    """1,000 questions of SimpleQA Verified (Haas et al. 2025, arXiv:2509.07968), in file order.

    A file is the published CSV. Numeric golds may end in "(acceptable range: …)": the gold stays whole, as graders need
    it; the part before the bracket is an alias, so that text comparison is not spoiled by the words of the bracket; the
    range itself stands in ``metadata["acceptable_range"]``.
    """

    name: ClassVar[str] = "simpleqa_verified"
    columns: ClassVar[tuple[str, ...]] = ("problem", "answer", "topic", "answer_type")
    asks: ClassVar[str] = "problem"

    hub: str = "google/simpleqa-verified"
    hub_split: str = "eval"

    def spoken(self, example: Example) -> str:
        """The gold without its bracket."""
        return example.aliases[0] if example.aliases else example.answer

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        answer = text_of(row, "answer", self.origin, index + 1)
        metadata = {key: str(row[key]) for key in _METADATA if key in row}
        match = _RANGE.match(answer)
        if match:
            metadata["acceptable_range"] = match["range"]

        example = Example(
            id=f"simpleqa-verified-{index:04d}",
            question=text_of(row, "problem", self.origin, index + 1),
            answer=answer,
            aliases=(match["gold"],) if match else (),
            split=split,
            metadata=metadata,
        )
        return [example]
