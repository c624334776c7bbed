"""The methods that leave hidden states alone."""

import pytest

from harness.types import Intervention, Layout
from methods.baseline import Baseline
from methods.prompting import Prompting

LAYOUT = Layout(num_layers=4, width=8, num_heads=2, head_width=4)


@pytest.mark.parametrize("method", [Baseline(), Prompting(instruction="Answer in one word.")])
def test_nothing_is_fitted_edited_or_read(method: Baseline | Prompting) -> None:
    method.check(LAYOUT)
    intervention = method.intervention({}, {}, {})
    assert isinstance(intervention, Intervention)
    assert not intervention.edits
    assert not intervention.probes
    assert not method.steers
    assert method.parameters(LAYOUT) == {}
    assert method.requires == method.access == frozenset()


def test_only_the_baseline_is_the_identity() -> None:
    assert Baseline().null(LAYOUT) == {}
    assert Prompting(instruction="Answer in one word.").null(LAYOUT) is None


def test_prompting_without_an_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="instruction must not be empty"):
        Prompting(instruction=" \n").check(LAYOUT)
