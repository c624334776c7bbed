"""Sharing prompts between rows and between completions changes nothing, whatever the family's attention."""

from __future__ import annotations

import pytest
import torch
from engine_parts import PROMPTS as ROW_PROMPTS
from engine_parts import SEEDS, decode, network_of, one_thread, shifts, without_cache  # noqa: F401

from harness.subject import passes, prefix
from harness.subject.decode import Decoder
from harness.subject.load import ModelConfig, load_model
from harness.subject.network import Network
from harness.subject.passes import Text
from harness.subject.prefix import memory_of, shared_depth
from harness.subject.sampling import Sampling
from harness.subject.scorers import open_subject
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.subject.tiny import FAMILIES
from harness.types import Intervention, Probe, Site, Stream

PROMPTS = [(5, 9, 13, 21, 8, 40, 41), (7, 7, 3), tuple(range(20, 60))]
COMPLETIONS = [(4,), (30, 31, 32, 33, 34, 35, 36, 37, 38), *(tuple(range(60 + i, 90)) for i in range(4))]
TRIALS = [prompt for prompt in ROW_PROMPTS for _ in range(3)]


def tiny(family: str) -> Network:
    return network_of(load_model(ModelConfig(kind="tiny", family=family, device="cpu", dtype="float64")))


def edits_from(network: Network, layer: int, stream: Stream) -> Intervention:
    """Shifts with a strength per trial, at a site and at all that come after it."""
    edits = shifts(network, len(TRIALS))
    return Intervention({Site(at, stream): edit for (at, _), edit in edits.edits.items() if at >= layer})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shared_prompts_score_as_separate_ones(family: str) -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family=family, dtype="float64", chat_template=False)))
    texts = [Text(prompt, completion) for completion in COMPLETIONS for prompt in PROMPTS]
    with torch.no_grad():
        tally, again = Tally(), Tally()
        shared = passes.loglikelihood(subject.network, texts, Intervention(), tally)
        alone = [passes.loglikelihood(subject.network, [text], Intervention(), Tally())[0] for text in texts]
        passes.loglikelihood(subject.network, texts, Intervention(), again)
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    assert tally.forward_tokens < sum(len(text.ids) for text in texts), "prompts were not shared"
    kept = sum(map(len, PROMPTS))
    assert tally.forward_tokens - tally.padding_tokens == again.forward_tokens - again.padding_tokens + kept


def test_equal_texts_are_scored_once() -> None:
    network = tiny("llama")
    once, often = Tally(), Tally()
    with torch.no_grad():
        for tally, times in ((once, 2), (often, 6)):
            memory_of(network).forget()
            texts = [Text(PROMPTS[0], COMPLETIONS[1])] * times + [Text(PROMPTS[0], COMPLETIONS[2])] * 2
            scored = passes.loglikelihood(network, texts, Intervention(), tally)
            assert torch.equal(scored[0], scored[1])
            assert len(scored) == times + 2
    assert once.forward_tokens == often.forward_tokens


def test_gradients_take_the_plain_way() -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family="llama", dtype="float64", chat_template=False)))
    texts = [Text(PROMPTS[0], completion) for completion in COMPLETIONS]
    with torch.enable_grad():
        tally = Tally()
        passes.loglikelihood(subject.network, texts, Intervention(), tally)
    assert tally.forward_tokens >= sum(len(text.ids) for text in texts)


class _Watch(Probe):
    def read(self, h: torch.Tensor, where: object, carry: object) -> object:
        return carry


class TestDepth:
    def test_ends_at_the_first_site(self) -> None:
        edits = {Site(5, "mlp"): _Watch(), Site(3): _Watch()}
        assert shared_depth(Intervention(edits), 8) == 4
        assert shared_depth(Intervention(edits, {Site(2, "block_input"): _Watch()}), 8) == 2
        assert shared_depth(Intervention({Site(2, "heads"): _Watch()}), 8) == 2
        assert shared_depth(Intervention({Site(7): _Watch()}), 8) == 7

    def test_is_everything_without_edits(self) -> None:
        assert shared_depth(Intervention(), 8) == 8

    def test_too_few_blocks_are_not_worth_it(self) -> None:
        assert shared_depth(Intervention({Site(0): _Watch()}), 30) == 0
        assert shared_depth(Intervention({Site(3): _Watch()}), 30) == 4


@pytest.mark.parametrize(("layer", "stream"), [(0, "block"), (1, "attention"), (2, "block_input"), (3, "block")])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_trials_of_a_prompt_share_what_lies_below_their_edits(family: str, layer: int, stream: Stream) -> None:
    network = tiny(family)
    steered = edits_from(network, layer, stream)
    depth = min(3, layer + (stream == "block"))
    sampling, shared = Sampling(8, ignore_stop=True), Tally()
    rows = decode(network, steered, sampling, EngineConfig(max_rows=5), TRIALS, shared)
    assert rows == decode(network, without_cache(steered), sampling, EngineConfig(max_rows=5), TRIALS)

    steps = len(TRIALS) * 7
    prompts, trials = sum(map(len, ROW_PROMPTS)), sum(map(len, TRIALS))
    computed = shared.forward_tokens - shared.padding_tokens - steps
    share = depth / network.layout.num_layers
    assert computed == pytest.approx(share * prompts + (1 - share) * trials, abs=8)


def test_unsteered_trials_compute_each_prompt_once() -> None:
    network, tally = tiny("gemma3_text"), Tally()
    rows = decode(network, Intervention(), Sampling(6, ignore_stop=True), prompts=TRIALS, tally=tally)
    alone = decode(tiny("gemma3_text"), Intervention(), Sampling(6, ignore_stop=True))
    assert rows == [row for row in alone for _ in range(3)]
    assert tally.forward_tokens - tally.padding_tokens == sum(map(len, ROW_PROMPTS)) + 5 * len(TRIALS)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    network, tally = tiny("llama"), Tally()
    memory = memory_of(network)
    monkeypatch.setattr(prefix, "_MOST_BYTES", {"cpu": 1, "other": 1})
    with torch.no_grad():
        memory.parts(network, [(1, 2, 3)], 4, tally)
        assert memory.knows((1, 2, 3), 4)
        memory.parts(network, [(4, 5, 6)], 4, tally)
    assert memory.knows((4, 5, 6), 4)
    assert not memory.knows((1, 2, 3), 4), "the older prompt is given up"
    assert not memory.knows((4, 5, 6), 2), "other blocks are another matter"


def test_blocks_compute_again_afterwards() -> None:
    network = tiny("qwen2")
    before = decode(network, Intervention(), Sampling(4))
    decode(network, edits_from(network, 2, "block"), Sampling(4), prompts=TRIALS)
    assert not any("forward" in vars(block) for block in network.blocks.modules)
    memory_of(network).forget()
    assert decode(network, Intervention(), Sampling(4)) == before


def test_a_longer_prompt_in_the_same_group_does_no_harm() -> None:
    """Prompts are computed together with longer ones whose rows no longer run: their slots are shorter."""
    network = tiny("llama")
    long, short = list(range(30, 60)), [5, 6, 7]
    with torch.no_grad():
        memory_of(network).parts(network, [long, short], 4, Tally())
    rows = Decoder(network, [short] * 2, Intervention(), Sampling(5), SEEDS[:2]).run(EngineConfig())
    memory_of(network).forget()
    (alone,) = Decoder(network, [short], Intervention(), Sampling(5), SEEDS[:1]).run(EngineConfig())
    assert rows == [alone, alone]
