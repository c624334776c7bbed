"""Asking for what one wants: an instruction before every question, and no change of any hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.types import Artifact, Intervention, Layout, Method


@dataclass(frozen=True, kw_only=True)
class Prompting(Method):
    """A fixed instruction before every question: the cheapest competitor of any steering method.

    Source:
        common practice; the wording of the default instruction (in the YAML) is the project's own.

    Parameters:
        none. ``instruction`` is a setting: the text, the same for all questions.

    Steers:
        nothing; only the prompt is longer.

    Requires:
        nothing.

    Access:
        nothing besides the question. The instruction must not hold answers.

    Artifact:
        empty.

    Fidelity:
        exact by definition.
    """

    steers: ClassVar[bool] = False

    def check(self, layout: Layout) -> None:
        """Raise ValueError for an empty instruction, which would silently repeat the baseline."""
        if not self.instruction.strip():
            raise ValueError("prompting: instruction must not be empty; without one the run is the baseline")

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """An intervention without edits."""
        return Intervention()
