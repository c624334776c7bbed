"""One parameter set for all, given beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data import Example, Parameters
from harness.search.search import Search, Selection, Setting, run_all
from harness.steering import Layout, Method
from harness.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Fixed(Search):
    """One parameter set for all: every parameter's default, or the values given here.

    Args:
        parameters: values by name; those not named keep their default.
    """

    parameters: dict[str, float]

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a parameter that the method does not have or a value out of its range."""
        known = method.parameters(layout)
        for name, value in self.parameters.items():
            if name not in known:
                raise ValueError(
                    f"search.parameters: no parameter '{name}' (the method has {', '.join(known) or 'none'})"
                )
            if name == "layer" or name.endswith(".layer"):
                layout.check_layer(f"search.parameters.{name}", value)

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Parameters:
        """The parameter set."""
        return bench.method.defaults(bench.subject.layout) | self.parameters

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Parameters, setting: Setting
    ) -> list[Selection]:
        """Run every example once."""
        return run_all(bench, examples, prepared, setting)
