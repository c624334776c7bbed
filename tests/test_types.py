"""The front door of the contract: every name from one place, and no more imported than is asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from harness import types
from harness.types import Layout, Method, Range

Strength = float | Range


class RangeLabel(str):
    """A name that holds the letters Range, on a type that is none."""


@dataclass(frozen=True, kw_only=True)
class Spelt(Method):
    strength: Strength = 0.5
    label: RangeLabel | None = None
    layer: float | Range | None = 2


def test_the_type_and_not_its_spelling_makes_a_parameter() -> None:
    assert Spelt().parameters(Layout(4, 8, 2, 4)) == {"strength": 0.5, "layer": 2.0}


def test_examples_and_scores_need_no_torch() -> None:
    script = "import sys; from harness.types import Access, Example, Metric, Score; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_the_front_door_gives_what_it_lists() -> None:
    for name in dir(types):
        assert getattr(types, name) is not None
    with pytest.raises(AttributeError, match="no name 'Nothing'"):
        _ = types.Nothing
