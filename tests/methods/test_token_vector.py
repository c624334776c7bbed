"""DiffMean, PCA and LAT from single tokens: planted directions, scales by hand, the authors' values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import directions
from harness.subject.load import ModelConfig, load_model
from harness.subject.scorers import open_subject
from harness.types import Demonstration, Example, FitData, Layout, Range, Site, TokenStates
from methods.token_vector import TokenVector

WIDTH, LAYERS = 12, 3
NAMES = ("mean_difference", "pca", "lat")


class TokenSubject:
    """Texts are numbers of given token states (T, D); every prompt begins with the same number of tokens."""

    def __init__(self, states: Mapping[Site, Sequence[Tensor]], prefix_length: int) -> None:
        first = next(iter(states.values()))
        layers = 1 + max(site.layer for site in states)
        self.layout = Layout(layers, first[0].shape[1], 1, first[0].shape[1])
        self.states, self.prefix_length = states, prefix_length
        self.sites: list[Site] = []

    def capture_tokens(
        self, prompts: Sequence[str], completions: Sequence[str], sites: Sequence[Site]
    ) -> Iterator[TokenStates]:
        """Two texts at a time."""
        self.sites += sites
        for start in range(0, len(prompts), 2):
            rows = [int(prompt) for prompt in prompts[start : start + 2]]
            lengths = [len(self.states[sites[0]][row]) for row in rows]
            states = {site: torch.cat([self.states[site][row] for row in rows]) for site in sites}
            position = torch.cat([torch.arange(length) for length in lengths])
            text = torch.repeat_interleave(torch.arange(start, start + len(rows)), torch.tensor(lengths))
            yield TokenStates(states, text, position, torch.zeros_like(position))


def axis_of(layer: int, group: str = "") -> Tensor:
    generator = torch.Generator().manual_seed(50 + layer + 10 * len(group))
    return directions.unit(torch.randn(WIDTH, generator=generator))


def planted(groups: Sequence[str] = ("",), count: int = 30) -> tuple[TokenSubject, tuple[Demonstration, ...]]:
    """Wanted tokens spread along the planted axis, further along than others; the prefix is huge noise."""
    generator = torch.Generator().manual_seed(3)
    texts, states = [], {Site(layer): [] for layer in range(LAYERS)}
    for group in groups:
        for number in range(2 * count):
            is_wanted = number < count
            texts.append(Demonstration(str(len(texts)), "", wanted=is_wanted, group=group))
            length = 4 + number % 3
            along = (3.0 if is_wanted else 1.0) * torch.randn(length, generator=generator) + (4.0 if is_wanted else 0.0)
            for site, rows in states.items():
                noise = 0.3 * torch.randn(length, WIDTH, generator=generator) + 5
                row = noise + along[:, None] * axis_of(site.layer, group)
                row[:2] = 1e4 * torch.randn(2, WIDTH, generator=generator)
                rows.append(row)
    return TokenSubject(states, prefix_length=2), tuple(texts)


@pytest.mark.parametrize("name", NAMES)
def test_planted_direction_is_found_in_every_layer_and_group(name: str) -> None:
    subject, texts = planted(("a", "bcd"))
    artifact = TokenVector(direction=name).fit(subject, FitData(demonstrations=texts))
    assert artifact["vector"].shape == (2, LAYERS, WIDTH)
    for place, group in enumerate(("a", "bcd")):
        for layer in range(LAYERS):
            assert directions.unit(artifact["vector"][place, layer]) @ axis_of(layer, group) > 0.97
    condition = TokenVector().condition(subject, artifact, [Example("1", "?", group="bcd")])
    steered = TokenVector().intervention(artifact, condition, {"layer": torch.ones(1), "strength": torch.tensor([2.0])})
    assert torch.equal(steered.edits[Site(1)].vector, 2 * artifact["vector"][1:2, 1])


def test_without_unwanted_texts_the_sign_is_free_and_a_difference_impossible() -> None:
    subject, texts = planted()
    positives = FitData(demonstrations=tuple(text for text in texts if text.wanted))
    for name in ("pca", "lat"):
        vector = TokenVector(direction=name, normalise="unit").fit(subject, positives)["vector"][0, 1]
        assert (vector @ axis_of(1)).abs() > 0.97
    with pytest.raises(ValueError, match=r"mean_difference needs more training tokens .*got \d+ wanted and 0 unwanted"):
        TokenVector(direction="mean_difference").fit(subject, positives)
    with pytest.raises(ValueError, match="no texts to learn from"):
        TokenVector().fit(subject, FitData())


def test_a_fixed_layer_is_fitted_alone_and_a_range_as_far_as_it_goes() -> None:
    subject, texts = planted()
    data = FitData(demonstrations=texts)
    all_layers = TokenVector().fit(subject, data)["vector"]

    subject.sites.clear()
    one = TokenVector(layer=2).fit(subject, data)
    assert set(subject.sites) == {Site(2)}
    assert one["layers"].tolist() == [2]
    assert torch.equal(one["vector"][:, 0], all_layers[:, 2])

    two = TokenVector(layer=Range(low=1, high=2, default=1, integer=True)).fit(subject, data)
    assert two["layers"].tolist() == [1, 2]
    steered = TokenVector().intervention(
        two, {"group": torch.zeros(2, dtype=torch.long)}, {"layer": torch.tensor([2.0, 1.0]), "strength": torch.ones(2)}
    )
    assert torch.equal(steered.edits[Site(2)].vector, torch.stack([two["vector"][0, 1], torch.zeros(WIDTH)]))


def test_scales_by_hand() -> None:
    # Behind the prefix: wanted (3, 4) and (6, 8), unwanted (0, 0); the difference lies along (0.6, 0.8).
    states = {Site(0): [torch.tensor([[99.0, 0], [3.0, 4.0], [6.0, 8.0]]), torch.tensor([[99.0, 0], [0.0, 0.0]])]}
    texts = (Demonstration("0", ""), Demonstration("1", "", wanted=False))
    for normalise, length in (("unit", 1.0), ("activation", 5.0), ("peak", 10.0)):
        method = TokenVector(direction="mean_difference", normalise=normalise)
        vector = method.fit(TokenSubject(states, prefix_length=1), FitData(demonstrations=texts))["vector"][0, 0]
        torch.testing.assert_close(vector, length * torch.tensor([0.6, 0.8]))
    turned = (replace(texts[0], wanted=False), replace(texts[1], wanted=True))
    method = TokenVector(direction="mean_difference", normalise="peak")
    with pytest.raises(ValueError, match="got 1 wanted"):
        method.fit(TokenSubject(states, prefix_length=1), FitData(demonstrations=turned))
    states[Site(0)][1] = torch.tensor([[99.0, 0], [0.0, 0.0], [0.0, 0.0]])
    vector = method.fit(TokenSubject(states, prefix_length=1), FitData(demonstrations=turned))["vector"][0, 0]
    torch.testing.assert_close(vector, 50.0 * torch.tensor([-0.6, -0.8]))  # no wanted token lies along it


def test_moments_in_chunks_are_those_of_the_whole() -> None:
    sample = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0) + 100
    moments = directions.Moments(outer=True)
    for chunk in sample.split(7):
        moments.add(chunk)
    torch.testing.assert_close(moments.mean, sample.double().mean(0))
    expected = directions.principal_direction(sample)
    direction = moments.principal_direction()
    torch.testing.assert_close(direction * torch.sign(direction @ expected), expected, rtol=1e-5, atol=1e-6)


def test_the_prefix_of_a_real_prompt_is_left_out() -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))
    texts = (Demonstration("ask", " yes"), Demonstration("say", " no", wanted=False))
    method = TokenVector(direction="mean_difference", normalise="unit", layer=1)
    vector = method.fit(subject, FitData(demonstrations=texts))["vector"][0, 0]
    chunks = list(subject.capture_tokens([t.prompt for t in texts], [t.completion for t in texts], [Site(1)]))
    states = {row: c.states[Site(1)][c.text == row] for c in chunks for row in c.text.unique().tolist()}
    # <bos><user>, which all prompts begin with; then 3 bytes, <assistant>, and the completion.
    assert [len(states[row]) for row in range(2)] == [2 + 3 + 1 + 4, 2 + 3 + 1 + 3]
    difference = states[0][2:].double().mean(0) - states[1][2:].double().mean(0)
    torch.testing.assert_close(vector, directions.unit(difference).float(), rtol=1e-4, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class GivenOrder(TokenVector):
    """Pairs as the authors' generator drew them."""

    order: Tensor

    def _order(self, count: int) -> Tensor:
        assert count == len(self.order)
        return self.order


@pytest.mark.parametrize(("direction", "name"), [("mean_difference", "w_diffmean"), ("pca", "w_pca"), ("lat", "w_lat")])
def test_fits_agree_with_the_authors(
    direction: str, name: str, golden: Callable[[str], Mapping[str, np.ndarray]]
) -> None:
    reference = golden("axbench")
    lengths = reference["attention_mask"].sum(1).tolist()
    states = [torch.from_numpy(row[:length]) for row, length in zip(reference["token_acts"], lengths, strict=True)]
    texts = tuple(Demonstration(str(row), "", wanted=bool(label)) for row, label in enumerate(reference["labels"]))
    subject = TokenSubject({Site(0): states}, int(reference["prefix_length"]))
    order = torch.from_numpy(reference["lat_permutation"])
    method = GivenOrder(direction=direction, normalise="unit", order=order)
    vector = method.fit(subject, FitData(demonstrations=texts))["vector"][0, 0]
    expected = torch.from_numpy(reference[name])
    sign = 1.0 if direction == "mean_difference" else torch.sign(vector @ expected)  # free in theirs
    torch.testing.assert_close(vector * sign, expected, rtol=1e-5, atol=1e-5)
