"""GSM8K: word problems of school arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.published import SampledTask
from harness.tasks.questions import Questions
from harness.tasks.rows import Row, text_of

_CALCULATOR = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True, kw_only=True)
class GSM8K(SampledTask, Questions):
    """1,319 word problems that take two to eight steps (Cobbe et al. 2021, arXiv:2110.14168), the published test rows.

    The prompt asks for the steps and for the final number behind ``####``, as the data write it; no worked examples
    stand before it. The gold is the final number.

    Pairs are (prompt, worked solution, worked solution of another training item), the other one as near in length as
    can be had; calculator notes (``<<3*4=12>>``) are cut. AUSteer takes the most similar other answer by a sentence
    embedding instead.

    A file has the columns ``question`` and ``answer``; an answer is the steps, then ``####`` and the number.
    """

    name: ClassVar[str] = "gsm8k"
    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    hub: str = "openai/gsm8k"
    hub_config: str | None = "main"
    max_new_tokens: int = 256

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        solution = _CALCULATOR.sub("", text_of(row, "answer", self.origin, index + 1))
        _, mark, number = solution.rpartition("####")
        if not mark or not re.search(r"\d", number):
            raise ValueError(f"{self.origin}: row {index + 1}: answer must end in #### and a number, got {solution!r}")

        question = text_of(row, "question", self.origin, index + 1)
        example = Example(
            id=str(row.get("id") or f"gsm8k-{index:04d}"),
            question=f"{question}\n\nWork it out step by step. Write the final number on the last line, after ####.",
            answer=number.strip(),
            split=split,
            metadata={"solution": solution},
        )
        return [example]

    def spoken(self, example: Example) -> str:
        """The worked solution."""
        return example.metadata["solution"]
