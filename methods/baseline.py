"""No steering at all: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.types import Artifact, Intervention, Layout, Method, Parameters


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """The model as it is.

    Source:
        none; the reference point of every comparison.

    Parameters:
        none.

    Steers:
        nothing.

    Requires:
        nothing.

    Access:
        nothing besides the question.

    Artifact:
        empty.

    Fidelity:
        exact; no hook is registered, so the outputs are the model's own.
    """

    steers: ClassVar[bool] = False

    def null(self, layout: Layout) -> Parameters | None:
        """The empty set of parameters: the method is the identity everywhere."""
        return {}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """An intervention without edits."""
        return Intervention()
