"""COPA: which of two sentences is the cause, or the effect, of a third."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.published import SampledTask
from harness.tasks.questions import Questions
from harness.tasks.rows import Row, label_of, text_of
from harness.tasks.task import Kind

_JOINTS = {"cause": "because", "effect": "so"}


@dataclass(frozen=True, kw_only=True)
class COPA(SampledTask, Questions):
    """Choice of plausible alternatives (Roemmele et al. 2011), SuperGLUE's 100 validation rows.

    The premise, joined by "because" or "so", is continued as it is, without template; the log-likelihoods of the two
    alternatives are compared, summed over their tokens. Pairs are (opening, right continuation, wrong one).

    A file has the columns ``premise``, ``choice1``, ``choice2``, ``question`` (cause or effect) and ``label`` (0 or 1).
    """

    name: ClassVar[str] = "copa"
    kind: ClassVar[Kind] = "choice"
    raw: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("premise", "choice1", "choice2", "question", "label")
    asks: ClassVar[str] = "premise"

    hub: str = "aps/super_glue"
    hub_config: str | None = "copa"
    hub_split: str = "validation"

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        premise, *alternatives, relation = (text_of(row, name, self.origin, index + 1) for name in self.columns[:4])
        if relation not in _JOINTS:
            raise ValueError(f"{self.origin}: row {index + 1}: question must be cause or effect, got {relation!r}")
        target = label_of(row, "label", range(2), self.origin, index + 1)
        choices = tuple(f" {_inside_a_sentence(text)}" for text in alternatives)

        example = Example(
            id=str(row.get("id") or f"copa-{index:04d}"),
            question=f"{premise.rstrip('.')} {_JOINTS[relation]}",
            answer=choices[target],
            distractors=(choices[1 - target],),
            choices=choices,
            target=target,
            split=split,
        )
        return [example]


def _inside_a_sentence(sentence: str) -> str:
    """A sentence without its capital, unless it begins with the word I."""
    first = sentence.split()[0]
    return sentence if first == "I" or first.startswith("I'") else sentence[0].lower() + sentence[1:]
