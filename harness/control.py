"""Controls: what a method is fed instead, to find out where its effect comes from. They work with any method."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.data import Access, Demonstration, Example, FitData, Pair
from harness.steering import Carry, Edit, Intervention, Layout, Where

if TYPE_CHECKING:
    from jaxtyping import Float


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on these parts alone, on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Control:
    """No control: the method gets what it asks for.

    Subclasses change one of: the data it fits on, the example whose condition a row gets, its edits, the prompt, or
    whether it steers at all.
    """

    access: ClassVar[frozenset[Access]] = frozenset()
    steers: ClassVar[bool] = True
    """False: the model runs un-steered."""
    temperature: float = 0.0
    """Temperature at which trials are drawn; 0 is the task's own."""
    detects: ClassVar[bool] = True
    """False: it leaves what was fitted alone, so that latents would be those of the method itself."""
    may_do_nothing: ClassVar[bool] = False
    """True: a method that decides by what it learnt whether to act may find nothing to do under this control."""

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature below 0."""
        if self.temperature < 0:
            raise ValueError(f"control.temperature must not be below 0, got {self.temperature}")

    def fit_data(self, data: FitData, seed: int) -> FitData:
        """What the method fits on."""
        return data

    def fed(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """For each example of the whole split, the one whose condition it gets."""
        return list(examples)

    def wrap(self, intervention: Intervention, ids: Sequence[str], layout: Layout, seed: int) -> Intervention:
        """The edits that really act; ``ids`` names the example of each row."""
        return intervention

    def instruction(self, example: Example) -> str:
        """Text to place before this example's question."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Shuffled(Control):
    """The right amount of the wrong information: another item's reference, and contrasts whose labels are shuffled.

    Rows get the condition of the next example in a seeded circular order. Half of the pairs of each group are swapped,
    half of the labelled answers of each kind change their label, source and target texts are dealt anew. Wanted
    demonstrations are dealt anew among the groups, so that texts no longer belong to the concept they stand under;
    then, in groups that have both kinds, half of each kind change sides. Texts of the *control* role stay what they
    are, so a gate that tells source from control texts is still informed.
    """

    version: ClassVar[int] = 2

    may_do_nothing: ClassVar[bool] = True

    def fit_data(self, data: FitData, seed: int) -> FitData:
        """Shuffle whatever tells the two sides apart."""
        rng = np.random.default_rng(stable_seed(seed, "shuffled"))
        swap = _half_of_each([pair.group for pair in data.pairs], rng)
        pairs = tuple(_swapped(pair) if flip else pair for pair, flip in zip(data.pairs, swap, strict=True))

        texts = [*data.source, *data.target]
        dealt = [texts[index] for index in rng.permutation(len(texts))]

        flips = _half_of_each([str(is_wanted) for _, _, is_wanted in data.labelled], rng)
        labelled = tuple((p, c, w != flip) for (p, c, w), flip in zip(data.labelled, flips, strict=True))

        source, target = tuple(dealt[: len(data.source)]), tuple(dealt[len(data.source) :])
        shown = _sides_changed(_dealt_among_groups(data.demonstrations, rng), rng)
        return dataclasses.replace(
            data, pairs=pairs, source=source, target=target, labelled=labelled, demonstrations=shown
        )

    def fed(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """Another example for each: the next one in a random circle.

        Raises:
            ValueError: there is no other example.
        """
        if len(examples) < 2:
            raise ValueError("control=shuffled needs at least 2 examples")
        order = np.random.default_rng(stable_seed(seed, "fed")).permutation(len(examples))
        following = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
        return [examples[following[index]] for index in range(len(examples))]


def _half_of_each(kinds: Sequence[str], rng: np.random.Generator) -> list[bool]:
    """True for a random half of each kind: with a coin for each, a part of the true contrast would be left over."""
    chosen = [False] * len(kinds)
    for kind in dict.fromkeys(kinds):
        members = [index for index, other in enumerate(kinds) if other == kind]
        for index in rng.permutation(members)[: len(members) // 2]:
            chosen[index] = True
    return chosen


def _dealt_among_groups(shown: Sequence[Demonstration], rng: np.random.Generator) -> tuple[Demonstration, ...]:
    """The same groups and concepts, their wanted texts drawn from all groups."""
    positives = [index for index, one in enumerate(shown) if one.wanted]
    dealt = list(shown)
    for index, other in zip(positives, rng.permutation(positives).tolist(), strict=True):
        dealt[index] = dataclasses.replace(shown[index], prompt=shown[other].prompt, completion=shown[other].completion)
    return tuple(dealt)


def _sides_changed(shown: Sequence[Demonstration], rng: np.random.Generator) -> tuple[Demonstration, ...]:
    """Half of each kind called the other, in groups that have both kinds."""
    kinds = {(one.group, one.wanted) for one in shown}
    flips = _half_of_each([f"{one.group} {one.wanted}" for one in shown], rng)
    return tuple(
        dataclasses.replace(one, wanted=not one.wanted) if flip and (one.group, not one.wanted) in kinds else one
        for one, flip in zip(shown, flips, strict=True)
    )


def _swapped(pair: Pair) -> Pair:
    return dataclasses.replace(pair, positive=pair.negative, negative=pair.positive)


@dataclass(frozen=True, eq=False)
class SameNorm(Edit):
    """Move as far as another edit would, in a direction of its own."""

    inner: Edit
    direction: Float[Tensor, "B D"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """``h + |inner(h) - h| * direction`` at every token."""
        edited, carry = self.inner.apply(h, where, carry)
        distance = (edited - h).float().norm(dim=-1, keepdim=True)
        return h + (distance * self.direction[:, None].to(distance)).to(h.dtype), carry


@dataclass(frozen=True, kw_only=True)
class RandomDirection(Control):
    """The same distance in a random direction, fixed for each example and site."""

    version: ClassVar[int] = 2
    detects: ClassVar[bool] = False

    def wrap(self, intervention: Intervention, ids: Sequence[str], layout: Layout, seed: int) -> Intervention:
        """Replace every edit's direction."""
        streams = {site.stream: layout.site_width(site) for site in intervention.edits}
        drawn = {
            (name, stream): _directions(layout.num_layers, width, stable_seed(seed, *_named(name, stream)))
            for name in set(ids)
            for stream, width in streams.items()
        }
        edits: dict = {}
        for site, edit in intervention.edits.items():
            stacked = torch.stack([drawn[name, site.stream][site.layer] for name in ids])
            edits[site] = SameNorm(edit, torch.nn.functional.normalize(stacked, dim=-1))
        return dataclasses.replace(intervention, edits=edits)


def _named(name: str, stream: str) -> tuple[str, ...]:
    return ("direction", name) if stream == "block" else ("direction", name, stream)


def _directions(num_layers: int, width: int, seed: int) -> Float[Tensor, "L D"]:
    """One for each layer, whichever of them are steered: what one row gets must not depend on the rows beside it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(width, generator=generator) for _ in range(num_layers)])


@dataclass(frozen=True, kw_only=True)
class GoldInPrompt(Control):
    """The upper bound: no steering, the answer stands in the prompt.

    Args:
        text: instruction with ``{answer}``.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.GOLD})
    steers: ClassVar[bool] = False
    text: str = "The correct answer to the following question is: {answer}"

    def instruction(self, example: Example) -> str:
        """The answer, told outright."""
        return self.text.replace("{answer}", example.answer)


@dataclass(frozen=True, kw_only=True)
class BestOfN(Control):
    """Luck alone: un-steered samples, as many as there are trials, chosen by the same objective."""

    steers: ClassVar[bool] = False
    temperature: float = 0.9
