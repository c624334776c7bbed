"""Rows that are steered together: they start and stay together, feel each other and nobody else."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from engine_parts import PROMPTS, ids, network_of, one_thread  # noqa: F401
from jaxtyping import Float
from torch import Tensor

from harness.subject.decode import Decoder
from harness.subject.load import ModelConfig, load_model
from harness.subject.network import Network
from harness.subject.passes import Text, groups_of, run_pass
from harness.subject.plain import steered
from harness.subject.sampling import Sampling, drawn_token, uniform_draws
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.types import Carry, Edit, Intervention, Site, Where

GROUPS = torch.tensor([4, 4, 4, 1, 1, 9, 9, 9, 9])
"""Three prompts with 3, 2 and 4 samples."""
ASKED = [PROMPTS[2]] * 3 + [PROMPTS[0]] * 2 + [PROMPTS[3]] * 4
SEEDS = list(range(50, 59))
DRAWN = Sampling(8, temperature=1.0)
TOGETHER = EngineConfig(max_rows=64)


@dataclass(frozen=True, eq=False)
class Repel(Edit):
    """Away from the mean of all rows of the group that have a token at the same position."""

    amount: Float[Tensor, "B"]

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        if where.groups is None:
            return h, carry
        real = torch.ones(h.shape[:2], dtype=torch.bool) if where.real is None else where.real
        beside = (where.groups[:, None] == where.groups).to(h)
        # Rows of one group are in step, so that columns of equal positions meet.
        total = torch.einsum("ab,btd->atd", beside, h * real[..., None])
        mean = total / torch.einsum("ab,bt->at", beside, real.to(h)).clamp(min=1)[..., None]
        return where.keep(h + self.amount[:, None, None].to(h) * (h - mean), h, "predicting"), carry


def steering(network: Network) -> Intervention:
    amount = torch.linspace(0.5, 3.0, len(GROUPS))
    # Samples of one prompt are equal before the first token is drawn; later their own tokens tell them apart.
    edits = {Site(layer): Repel(amount) for layer in range(network.layout.num_layers)}
    return Intervention(edits, groups=GROUPS)


@pytest.fixture
def network() -> Network:
    return network_of(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")), stop_every=7)


def decode(
    network: Network, intervention: Intervention, engine: EngineConfig, rows: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    rows = range(len(GROUPS)) if rows is None else rows
    prompts, seeds = [ASKED[row] for row in rows], [SEEDS[row] for row in rows]
    return ids(Decoder(network, prompts, intervention, DRAWN, seeds).run(engine))


@torch.no_grad()
def by_whole_passes(network: Network, intervention: Intervention) -> list[tuple[int, ...]]:
    """Every token from a pass over all that is written; what has ended is read along, up to its end."""
    uniform = uniform_draws(SEEDS, DRAWN.max_new_tokens)
    written: list[list[int]] = [[] for _ in ASKED]
    ended: set[int] = set()
    for step in range(DRAWN.max_new_tokens):
        texts = [Text(tuple(prompt), tuple(row)) for prompt, row in zip(ASKED, written, strict=True)]
        final = run_pass(network, texts, intervention, Tally()).final
        assert final is not None
        last = torch.stack([final[row, len(text.ids) - 1] for row, text in enumerate(texts)])
        drawn = drawn_token(network.logits(last), DRAWN.temperature, uniform[:, step]).tolist()
        for row in set(range(len(ASKED))) - ended:
            if drawn[row] in network.stop_ids:
                ended.add(row)
            else:
                written[row].append(drawn[row])
    return [tuple(row) for row in written]


def test_tokens_are_those_of_whole_passes(network: Network) -> None:
    steered = steering(network)
    expected = by_whole_passes(network, steered)
    assert decode(network, steered, TOGETHER) == expected
    for members in groups_of(GROUPS):
        assert len({len(expected[row]) for row in members}) > 1, "samples of each prompt must end at different times"

    kept = dataclasses.replace(steered, groups=None)
    assert decode(network, kept, TOGETHER) != expected


@pytest.mark.parametrize("at_once", [4, 5, 7])
def test_tokens_do_not_depend_on_other_groups(network: Network, at_once: int) -> None:
    steered = steering(network)
    expected = decode(network, steered, TOGETHER)
    assert decode(network, steered, EngineConfig(max_rows=at_once)) == expected
    for members in groups_of(GROUPS):
        alone = decode(network, steered.take(torch.tensor(members)), TOGETHER, members)
        assert alone == [expected[row] for row in members]


def test_groups_of_later_offers_are_others(network: Network) -> None:
    steered = steering(network)
    expected = decode(network, steered, TOGETHER)
    decoder = Decoder(network, ASKED, steered, DRAWN, SEEDS)
    decoder.offer(ASKED, steered, SEEDS)
    assert ids(decoder.run(EngineConfig(max_rows=11))) == expected * 2


def test_samples_that_do_not_fit_are_refused(network: Network) -> None:
    with pytest.raises(ValueError, match="4 samples of one prompt are steered together, but only 3 rows fit at once"):
        decode(network, steering(network), EngineConfig(max_rows=3))


def test_what_cannot_be_steered_together_is_refused(network: Network) -> None:
    steered = steering(network)
    with pytest.raises(ValueError, match="every prompt is here once"):
        decode(network, dataclasses.replace(steered, groups=torch.arange(9)), TOGETHER)
    with pytest.raises(ValueError, match="rows that are steered together need a cache"):
        decode(network, dataclasses.replace(steered, uses_cache=False), TOGETHER)
    with pytest.raises(ValueError, match=r"engine\.compile must be false"):
        decode(network, steered, EngineConfig(max_rows=16, compile=True))


def test_a_plain_model_is_refused(network: Network) -> None:
    with (
        pytest.raises(ValueError, match="a plain forward pass does not tell which they are"),
        steered(network.model, lambda rows: Intervention(groups=torch.zeros(rows))),
    ):
        pass
