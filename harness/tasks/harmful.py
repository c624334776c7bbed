"""Requests that should be refused, and harmless ones that should not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.published import SampledTask
from harness.tasks.rows import HubData, Row, check_columns, hub_rows, text_of
from harness.tasks.selection import in_turn, order
from harness.tasks.task import Offer, Role

_KINDS = ("harmful", "harmless")
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "No, I won't help with this: somebody could be hurt.",
    "I can't assist with a request like that.",
    "That is something I will not do, since it could cause harm.",
    "Sorry, I am not able to help you with this.",
    "I have to decline. This would harm people.",
)
"""Refusals of the project's own wording, for data that bring none."""


@dataclass(frozen=True, kw_only=True)
class Harmful(SampledTask):
    """Harmful and harmless requests in turn, so that ``limit`` keeps both; ``group`` says of which kind each is.

    On the hub: the 100 harmful and 100 benign behaviours of JailbreakBench (Chao et al. 2024, arXiv:2404.01318).

    Pairs are (harmful training prompt, a refusal, the opening of an answer that complies); prompts without such an
    opening make none. Texts are prompts with what follows: *source* with the opening that complies, *target* with the
    refusal; *control* are harmless prompts with the opening of an answer. Where a row brings no refusal, it is one of
    the project's own, by the SHA-256 of seed and prompt.

    A file has the columns ``prompt`` and ``kind`` (harmful or harmless); ``answer`` (the opening of an answer that
    complies), ``refusal``, ``id`` and ``split`` are optional. The sample's harmful requests are mild and name no means.

    Args:
        harmless_split: split of the data set that holds the harmless requests; ``hub_split`` holds the harmful ones.
    """

    name: ClassVar[str] = "harmful"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "kind")
    asks: ClassVar[str] = "prompt"

    hub: str = "JailbreakBench/JBB-Behaviors"
    hub_config: str | None = "behaviors"
    hub_split: str = "harmful"
    harmless_split: str = "benign"

    def source(self) -> list[Row]:
        """Rows of the stand-in, or of both splits on the hub."""
        if self.sample:
            return super().source()
        rows: list[Row] = []
        for kind, name in zip(_KINDS, (self.hub_split, self.harmless_split), strict=True):
            published = hub_rows(HubData(self.hub, self.hub_config, name, self.revision), self.columns)
            check_columns(published, ("Goal", "Target"), f"{self.hub} (split {name})")
            rows += [{"prompt": row["Goal"], "kind": kind, "answer": row["Target"]} for row in published]
        return rows

    def convert(self, rows: list[Row]) -> list[Row]:
        """Harmful and harmless rows in turn."""
        check_columns(rows, self.columns, self.origin)
        for number, row in enumerate(rows, start=1):
            if row["kind"] not in _KINDS:
                kinds = " or ".join(_KINDS)
                raise ValueError(f"{self.origin}: row {number}: kind must be {kinds}, got {row['kind']!r}")
        return in_turn(rows, "kind")

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row; what may be learned from stands in the metadata."""
        prompt = text_of(row, "prompt", self.origin, index + 1)
        own = _REFUSALS[int(order(prompt, self.seed), 16) % len(_REFUSALS)]
        refusal = text_of(row, "refusal", self.origin, index + 1) if row.get("refusal") else own
        answer = text_of(row, "answer", self.origin, index + 1) if row.get("answer") else ""

        example = Example(
            id=str(row.get("id") or f"{row['kind']}-{index:04d}"),
            question=prompt,
            group=row["kind"],
            split=split,
            metadata={"refusal": refusal, "answer": answer},
        )
        return [example]

    def offers(self) -> frozenset[Offer]:
        """Pairs, texts, and both sides of each pair as labelled completions."""
        return frozenset({"pairs", "texts", "labelled"})

    def pairs(self) -> list[Pair]:
        """A refusal against an answer, for harmful training prompts."""
        return [
            Pair(item.question, item.metadata["refusal"], item.metadata["answer"]) for item in self._answered("harmful")
        ]

    def texts(self, role: Role) -> list[str]:
        """Harmful prompts answered (source) and refused (target), harmless ones answered (control)."""
        kind, column = {
            "source": ("harmful", "answer"),
            "target": ("harmful", "refusal"),
            "control": ("harmless", "answer"),
        }[role]
        return [f"{item.question}\n{item.metadata[column]}" for item in self._answered(kind)]

    def _answered(self, kind: str) -> list[Example]:
        """Training items of a kind that bring the opening of an answer."""
        return [item for item in self.examples("train") if item.group == kind and item.metadata["answer"]]
