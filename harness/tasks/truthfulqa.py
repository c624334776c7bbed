"""TruthfulQA, multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.facts import Facts
from harness.tasks.questions import HubQuestions
from harness.tasks.rows import Row, text_of
from harness.tasks.task import Kind, Offer, Role


@dataclass(frozen=True, kw_only=True)
class TruthfulQA(HubQuestions):
    """817 questions that people often answer wrongly (Lin et al. 2022, arXiv:2109.07958), MC1 and MC2.

    ``choices`` holds every option of MC1, then those of MC2 that are new. ``metadata`` lists the indices that count for
    each: ``mc1`` (one is true: ``target``), ``mc2`` (several may be) and which are ``true``. Options are completions of
    the bare question, scored by their summed log-likelihood, un-normalised, as in the paper.

    Pairs are (question, the true MC1 option, the first false one); labelled completions are all options of MC2. Texts
    are questions with an option of MC2 behind them: a true one is *target*, a false one *source*, as activation
    transport was fitted on this data set (Rodriguez et al. 2024, arXiv:2410.23054); *control* texts are questions and
    answers of the task ``facts`` (its training split), as many as there are source texts, at most.
    A file is the official ``mc_task.json``, or JSON Lines of the same records.
    """

    name: ClassVar[str] = "truthfulqa"
    kind: ClassVar[Kind] = "choice"
    columns: ClassVar[tuple[str, ...]] = ("question", "mc1_targets", "mc2_targets")

    hub: str = "truthfulqa/truthful_qa"
    hub_config: str | None = "multiple_choice"
    hub_split: str = "validation"

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """One example per question."""
        mc1 = self._options(row, "mc1_targets", index)
        mc2 = self._options(row, "mc2_targets", index)
        choices = tuple(dict.fromkeys((*mc1, *mc2)))
        right = [option for option, label in mc1.items() if label]
        if len(right) != 1 or len(mc1) < 2:
            raise ValueError(f"{self.origin}: row {index + 1}: mc1_targets must hold one true option and others")

        example = Example(
            id=f"truthfulqa-{index:04d}",
            question=text_of(row, "question", self.origin, index + 1),
            answer=right[0],
            distractors=tuple(option for option, label in mc1.items() if not label),
            choices=choices,
            target=choices.index(right[0]),
            split=split,
            metadata={
                "mc1": [choices.index(option) for option in mc1],
                "mc2": [choices.index(option) for option in mc2],
                "true": [number for number, option in enumerate(choices) if {**mc1, **mc2}[option]],
            },
        )
        return [example]

    def _options(self, row: Row, column: str, index: int) -> dict[str, bool]:
        """Option to label; the hub keeps two parallel lists, the official file a mapping."""
        value: Any = row[column]
        if isinstance(value, Mapping) and set(value) == {"choices", "labels"}:
            value = dict(zip(value["choices"], value["labels"], strict=True))
        if not isinstance(value, Mapping) or not set(value.values()) <= {0, 1}:
            raise ValueError(f"{self.origin}: row {index + 1}: {column} must map options to 0 or 1")
        return {option.strip(): bool(label) for option, label in value.items()}

    def offers(self) -> frozenset[Offer]:
        """Texts, too."""
        further: frozenset[Offer] = frozenset({"texts"})
        return super().offers() | further

    def texts(self, role: Role) -> list[str]:
        """Questions with a true or a false option; questions and answers on plain facts as control."""
        if role == "control":
            neutral = [f"{item.question}\n{item.answer}" for item in Facts(seed=self.seed).examples("train")]
            return neutral[: len(self.texts("source"))]
        of_role = role == "target"
        return [f"{question}\n{option}" for question, option, is_true in self.labelled() if is_true is of_role]

    def pairs(self) -> list[Pair]:
        """The true option of MC1 against the first false one."""
        return [Pair(item.question, item.answer, item.distractors[0]) for item in self.examples("train")]

    def labelled(self) -> list[tuple[str, str, bool]]:
        """Every option of MC2 with its label."""
        return [
            (item.question, item.choices[number], number in item.metadata["true"])
            for item in self.examples("train")
            for number in item.metadata["mc2"]
        ]
