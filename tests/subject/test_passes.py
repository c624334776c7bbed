"""Captured activations are the model's own, and nothing is computed behind the last site asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_parts import one_thread  # noqa: F401

from harness.directions import AddVector
from harness.subject import capture as captures
from harness.subject import passes
from harness.subject.capture import capture, capture_tokens
from harness.subject.load import ModelConfig, load_model
from harness.subject.passes import Text, loglikelihood, next_token_logprobs
from harness.subject.scorers import open_subject
from harness.subject.tally import Tally
from harness.types import Intervention, Site
from methods.fusion import MeanShift

CONFIG = ModelConfig(kind="tiny", family="llama", dtype="float64", chat_template=False)
TEXTS = [Text((5, 9, 13, 21, 8), (30, 31)), Text((7, 7, 3), (40, 41, 42, 43, 44))]


@pytest.mark.parametrize("sites", [(Site(0),), (Site(1), Site(0)), (Site(2, "block_input"), Site(1))], ids=str)
def test_captures_are_the_hidden_states_of_the_model(sites: tuple[Site, ...]) -> None:
    network = open_subject(load_model(CONFIG)).network
    captured = capture(
        network, TEXTS, sites, tokens="completion", pool="mean", intervention=Intervention(), tally=Tally()
    )
    assert set(captured) == set(sites)
    model = load_model(CONFIG).model
    for row, text in enumerate(TEXTS):
        states = model(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        for site in sites:
            layer = site.layer + (site.stream == "block")  # the first of them is the embedding
            expected = states[layer][0, len(text.prompt) :].mean(0).float()
            torch.testing.assert_close(captured[site][row], expected, atol=1e-6, rtol=0)


def test_blocks_behind_the_last_site_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_subject(load_model(CONFIG)).network
    runs = [0] * network.layout.num_layers

    def counted(layer: int) -> None:
        block, _ = network.blocks.module(Site(layer))
        forward = block.forward

        def count(*args: Any, **kwargs: Any) -> Any:
            runs[layer] += 1
            return forward(*args, **kwargs)

        monkeypatch.setattr(block, "forward", count)

    for layer in range(network.layout.num_layers):
        counted(layer)
    capture(network, TEXTS, [Site(1)], tokens="prompt", pool="last", intervention=Intervention(), tally=Tally())
    assert runs == [1, 1] + [0] * (len(runs) - 2)
    passes.loglikelihood(network, TEXTS, Intervention(), Tally())
    assert runs[-1] == 1, "a capture must leave nothing behind that ends later passes"


def test_a_site_that_no_pass_comes_through_is_an_error() -> None:
    network = open_subject(load_model(CONFIG)).network
    last = network.layout.num_layers - 1
    network.model.base_model.layers = network.model.base_model.layers[:last]
    with pytest.raises(ValueError, match=f"does not pass through .*{last}"):
        capture(network, TEXTS, [Site(last)], tokens="all", pool="mean", intervention=Intervention(), tally=Tally())


def test_tokens_come_one_by_one_in_chunks_of_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "pass_tokens", lambda _device: 8)  # one text at a time
    network = open_subject(load_model(CONFIG)).network
    sites = [Site(2), Site(0, "heads")]
    chunks = list(
        capture_tokens(network, TEXTS, sites, tokens="completion", intervention=Intervention(), tally=Tally())
    )
    assert len(chunks) == len(TEXTS)
    pooled = capture(
        network, TEXTS, sites, tokens="completion", pool="mean", intervention=Intervention(), tally=Tally()
    )
    for chunk in chunks:
        (row,) = chunk.text.unique().tolist()
        text = TEXTS[row]
        assert tuple(chunk.token.tolist()) == text.completion
        assert chunk.position.tolist() == list(range(len(text.prompt), len(text.ids)))
        for site in sites:
            assert chunk.states[site].dtype == torch.float32
            torch.testing.assert_close(chunk.states[site].mean(0), pooled[site][row])
        ends = chunk.where(chunk.position == len(text.ids) - 1)
        assert (len(ends.token), ends.token.item()) == (1, text.ids[-1])
        assert torch.equal(ends.states[Site(2)], chunk.states[Site(2)][-1:])


def test_tokens_are_read_under_the_rows_own_edits() -> None:
    network = open_subject(load_model(CONFIG)).network
    vector = torch.stack([torch.zeros(network.layout.width), torch.ones(network.layout.width)])
    read = {"tokens": "all", "tally": Tally()}
    steered = Intervention({Site(1): AddVector(vector)})
    for plain, moved in zip(
        capture_tokens(network, TEXTS, [Site(1)], intervention=Intervention(), **read),
        capture_tokens(network, TEXTS, [Site(1)], intervention=steered, **read),
        strict=True,
    ):
        shift = moved.states[Site(1)] - plain.states[Site(1)]
        torch.testing.assert_close(shift, vector[plain.text], atol=1e-6, rtol=0)


def over_the_sequence(rows: int, width: int) -> Intervention:
    """Each row's mean over prompt and completion so far is moved, at every step anew."""
    reference = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edit = MeanShift(reference, torch.full((rows,), 0.7, dtype=torch.float64), "sequence")
    return Intervention({Site(1): edit}, uses_cache=False)


def test_a_scored_token_takes_no_part_in_its_own_prediction() -> None:
    network = open_subject(load_model(CONFIG)).network
    vocabulary = network.model.config.get_text_config().vocab_size
    prompt, completion = (5, 9, 13, 21, 8), (30, 31)
    texts = [Text(prompt, (*completion, token)) for token in range(vocabulary)]
    steered = over_the_sequence(1, network.layout.width)

    with torch.no_grad():
        logprobs = loglikelihood(network, texts, steered, Tally(), owners=[0] * vocabulary)
    last = torch.stack([row[-1] for row in logprobs])
    assert float(last.exp().sum()) == pytest.approx(1, abs=1e-9)
    (generated,) = next_token_logprobs(network, [prompt + completion], steered, Tally())
    torch.testing.assert_close(last, generated)


def test_tokens_of_several_texts_come_back_in_order() -> None:
    network = open_subject(load_model(CONFIG)).network
    steered = over_the_sequence(2, network.layout.width)
    with torch.no_grad():
        logprobs = loglikelihood(network, TEXTS, steered, Tally())
    for row, text in enumerate(TEXTS):
        own = steered.take(torch.tensor([row]))
        for place, token in enumerate(text.completion):
            (before,) = next_token_logprobs(network, [text.prompt + text.completion[:place]], own, Tally())
            torch.testing.assert_close(logprobs[row][place], before[token])
