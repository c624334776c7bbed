"""Which vector a fitted method adds where, for methods that are nothing but an addition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from harness.data import Access, Example, Parameters
from harness.directions import AddVector
from harness.steering import Artifact, Intervention, Method, Site, Tokens

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Addition:
    """A vector that is added at one site, its strength included.

    Args:
        site: where.
        vector: what is added, in float32.
        tokens: which tokens it is added to.
    """

    site: Site
    vector: Float[Tensor, "D"]
    tokens: Tokens


class _NoModel:
    """Stands in for the model where a method should need none to say what it adds."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError("what it does depends on each prompt: it reads the model before it steers")


def same_for_all_prompts(
    method: Method, artifact: Artifact, parameters: Parameters, *, group: str = "", rows: int = 1
) -> Intervention:
    """What a method does to any prompt, without a model at hand.

    Args:
        method: which one.
        artifact: its fitted tensors.
        parameters: of every row.
        group: which of several fitted concepts or behaviours.
        rows: of the intervention, all alike.

    Raises:
        ValueError: what it does depends on the prompt, or there is no such group.
    """
    name = type(method).__name__
    if Access.GOLD in method.access:
        raise ValueError(f"{name} is shown each question's answer, so what it does differs from prompt to prompt")
    probes = [Example(f"export-{word}", word, group=group) for word in ("one", "another question")]
    try:
        condition = method.condition(_NoModel(), artifact, probes)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if differing := [key for key, value in condition.items() if not torch.equal(value[0], value[1])]:
        raise ValueError(f"{name} looks up {', '.join(differing)} for each prompt, so it is not one change for all")
    return method.intervention(
        artifact,
        {key: value[:1].expand(rows, *value.shape[1:]) for key, value in condition.items()},
        {key: torch.full((rows,), float(value)) for key, value in parameters.items()},
    )


def additions_of(method: Method, artifact: Artifact, parameters: Parameters, *, group: str = "") -> list[Addition]:
    """The vectors that a method adds; those that are zero are left out.

    Raises:
        ValueError: it does anything else, or nothing.
    """
    intervention = same_for_all_prompts(method, artifact, parameters, group=group)
    name = type(method).__name__
    if intervention.probes:
        raise ValueError(f"{name} reads hidden states while it steers: it is no addition")

    additions: list[Addition] = []
    for site, edit in sorted(intervention.edits.items()):
        if not isinstance(edit, AddVector):
            raise ValueError(f"{name} does more at {site} than add a vector ({type(edit).__name__}): it is no addition")
        if bool(edit.vector.any()):
            additions.append(Addition(site, edit.vector[0].float().cpu(), edit.tokens))

    if not additions:
        raise ValueError(f"{name} adds nothing with {described(parameters)}")
    return additions


def described(parameters: Mapping[str, Any]) -> str:
    """Parameters in one line."""
    return ", ".join(f"{name} = {value:g}" for name, value in parameters.items()) or "no parameters"
