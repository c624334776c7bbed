"""TriviaQA without evidence documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from harness.data import Example, Split
from harness.tasks.facts import strings
from harness.tasks.questions import HubQuestions
from harness.tasks.rows import Row, text_of


@dataclass(frozen=True, kw_only=True)
class TriviaQA(HubQuestions):
    """Trivia questions with many accepted answers (Joshi et al. 2017, arXiv:1705.03551), closed book.

    A file is JSON Lines with ``question``, ``answer`` and ``aliases``; on the hub, ``answer`` is a record of value and
    aliases, which a file may have too. The data name no answer types: see `answer_type` for the guess that pairs use.
    """

    name: ClassVar[str] = "triviaqa"
    columns: ClassVar[tuple[str, ...]] = ("question", "answer", "aliases")

    hub: str = "mandarjoshi/trivia_qa"
    hub_config: str | None = "rc.nocontext"
    hub_split: str = "validation"

    def convert(self, rows: list[Row]) -> list[Row]:
        """Flatten the hub's answer record."""
        return [_flat(row) for row in rows]

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row, without aliases that repeat the answer."""
        answer = text_of(row, "answer", self.origin, index + 1)
        aliases = dict.fromkeys(strings(row, "aliases", self.origin, index))
        example = Example(
            id=str(row.get("id") or f"triviaqa-{index:05d}"),
            question=text_of(row, "question", self.origin, index + 1),
            answer=answer,
            aliases=tuple(alias for alias in aliases if alias.strip() and alias != answer),
            split=split,
        )
        return [example]


def _flat(row: Row) -> dict[str, Any]:
    answer = row.get("answer")
    if not isinstance(answer, dict) or "value" not in answer:
        return row
    flat = {"question": row.get("question"), "answer": answer["value"], "aliases": list(answer.get("aliases") or ())}
    return {**flat, "id": row["question_id"]} if row.get("question_id") else flat
