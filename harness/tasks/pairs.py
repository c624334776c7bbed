"""Contrast pairs of your own: the commonest form of steering data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.rows import Row, text_of
from harness.tasks.task import Kind, Offer, Task, check_name


@dataclass(frozen=True, kw_only=True)
class Pairs(Task):
    """Prompts with a wanted and an unwanted completion, from a file.

    Training rows are what methods fit on. Dev and test prompts are answered freely, and both their completions are
    compared by likelihood: the wanted one is the target, and the gold of evaluators that compare with one.

    The file has the columns ``prompt``, ``positive`` and ``negative``; ``id``, ``group`` (methods that learn a vector
    for each group keep them apart) and ``split`` (train, dev, test) are optional. Without splits set ``limit``, so that
    rows are left over to learn from.

    Args:
        name: what the data are called in tables and folders.
    """

    name: str = "pairs"  # pyright: ignore[reportIncompatibleVariableOverride]: here the user names the task
    kind: ClassVar[Kind] = "both"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "positive", "negative")
    asks: ClassVar[str] = "prompt"

    def source(self) -> list[Row]:
        """There are no pairs but the user's.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"task=pairs needs task.path=FILE with columns {', '.join(self.columns)}")

    def check(self) -> None:
        """Refuse a name that cannot stand in a folder's, then as every task."""
        check_name(self.name)
        super().check()

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        prompt, positive, negative = (text_of(row, column, self.origin, index + 1) for column in self.columns)
        if positive == negative:
            raise ValueError(f"{self.origin}: row {index + 1}: positive and negative are the same: {positive!r}")

        example = Example(
            id=str(row.get("id") or f"{self.name}-{index:04d}"),
            question=prompt,
            answer=positive,
            distractors=(negative,),
            choices=(positive, negative),
            target=0,
            group=str(row.get("group") or ""),
            split=split,
        )
        return [example]

    def offers(self) -> frozenset[Offer]:
        """Pairs, and both sides of each pair as labelled completions."""
        return frozenset({"pairs", "labelled"})

    def pairs(self) -> list[Pair]:
        """The training rows."""
        return [Pair(item.question, item.answer, item.distractors[0], item.group) for item in self.examples("train")]
