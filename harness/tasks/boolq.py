"""BoolQ: yes or no, by a passage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.published import SampledTask
from harness.tasks.questions import Questions
from harness.tasks.rows import Row, text_of
from harness.tasks.task import Kind


@dataclass(frozen=True, kw_only=True)
class BoolQ(SampledTask, Questions):
    """3,270 yes/no questions about a passage (Clark et al. 2019, arXiv:1905.10044), the published dev rows.

    The prompt is the passage, the question and a request for Yes or No, whose log-likelihoods are compared. Pairs are
    (prompt, right word, wrong word). The published test labels are secret, so test, dev and training rows are all taken
    from the published dev rows: see `divide`.

    A file has the columns ``question``, ``passage`` and ``answer`` (true or false).
    """

    name: ClassVar[str] = "boolq"
    kind: ClassVar[Kind] = "choice"
    columns: ClassVar[tuple[str, ...]] = ("question", "passage", "answer")

    hub: str = "google/boolq"
    hub_split: str = "validation"

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        passage = text_of(row, "passage", self.origin, index + 1)
        question = text_of(row, "question", self.origin, index + 1).rstrip("?")
        answers = {True: "Yes", False: "No"}
        right = row["answer"]
        if right not in (True, False, "true", "false", "True", "False"):
            raise ValueError(f"{self.origin}: row {index + 1}: answer must be true or false, got {right!r}")
        right = right in (True, "true", "True")

        example = Example(
            id=str(row.get("id") or f"boolq-{index:04d}"),
            question=f"{passage}\n\n{question[:1].upper()}{question[1:]}?\n\nReply with Yes or No.",
            answer=answers[right],
            distractors=(answers[not right],),
            choices=("Yes", "No"),
            target=0 if right else 1,
            split=split,
        )
        return [example]
