"""WinoGrande: who or what a blank stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Split
from harness.tasks.published import SampledTask
from harness.tasks.questions import Questions
from harness.tasks.rows import Row, label_of, text_of
from harness.tasks.task import Kind


@dataclass(frozen=True, kw_only=True)
class WinoGrande(SampledTask, Questions):
    """Sentences with a blank and two names for it (Sakaguchi et al. 2019, arXiv:1907.10641), 1,267 validation rows.

    The sentence up to the blank is continued as it is, without template, by either option and the rest of the sentence;
    their log-likelihoods are compared, summed over tokens. Pairs are (opening, right continuation, wrong one).

    Deviation from the usual figures: these leave out the likelihood of the option itself and count that of the rest of
    the sentence alone ("partial" scoring, Trinh & Le 2018, arXiv:1806.02847); here both count ("full" scoring).

    A file has the columns ``sentence`` (with one ``_``), ``option1``, ``option2`` and ``answer`` (1 or 2).
    """

    name: ClassVar[str] = "winogrande"
    kind: ClassVar[Kind] = "choice"
    raw: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("sentence", "option1", "option2", "answer")
    asks: ClassVar[str] = "sentence"

    hub: str = "allenai/winogrande"
    hub_config: str | None = "winogrande_xl"
    hub_split: str = "validation"

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per row."""
        sentence, *options = (text_of(row, name, self.origin, index + 1) for name in self.columns[:3])
        opening, *endings = sentence.split("_")
        if len(endings) != 1 or not opening.strip():
            raise ValueError(
                f"{self.origin}: row {index + 1}: sentence must hold one _ and something before it, got {sentence!r}"
            )
        target = label_of(row, "answer", range(1, 3), self.origin, index + 1) - 1
        choices = tuple(f" {option}{endings[0]}" for option in options)

        example = Example(
            id=str(row.get("id") or f"winogrande-{index:04d}"),
            question=opening.strip(),
            answer=choices[target],
            distractors=(choices[1 - target],),
            choices=choices,
            target=target,
            split=split,
        )
        return [example]
