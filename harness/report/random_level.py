"""Published values that a model of random weights reaches as well prove nothing when they come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAME = "random_model"


def refuse_met_by_chance(name: str, stated: Mapping[str, Any]) -> None:
    """Raise ValueError if what a random model scores lies within the tolerance of a published value.

    Args:
        name: where the value stands, for messages.
        stated: value, tolerance, and perhaps ``random_model``: what a model of random weights scores.
    """
    level = stated.get(_NAME)
    if level is None:
        return
    if isinstance(level, bool) or not isinstance(level, int | float):
        raise ValueError(f"{name}.{_NAME} must be a number, got {level!r}")
    if abs(level - stated["value"]) <= stated["tolerance"]:
        raise ValueError(
            f"{name}: a random model's {level:g} lies inside {stated['value']:g} ± {stated['tolerance']:g}, so that "
            "being inside would prove nothing; narrow the tolerance"
        )


def marked_source(stated: Mapping[str, Any]) -> str:
    """The source of a published value, with a mark where nobody says what a random model scores."""
    source = str(stated["source"])
    return source if stated.get(_NAME) is not None else f"{source}; a random model's value is not stated"
