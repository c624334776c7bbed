"""Captured activations are the model's own, and nothing is computed behind the last site asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.subject import passes
from harness.subject.decode import Tally
from harness.subject.load import ModelConfig, load_model
from harness.subject.passes import Text
from harness.subject.scorers import open_subject
from harness.types import Intervention, Site

CONFIG = ModelConfig(kind="tiny", family="llama", dtype="float64", chat_template=False)
TEXTS = [Text((5, 9, 13, 21, 8), (30, 31)), Text((7, 7, 3), (40, 41, 42, 43, 44))]


@pytest.mark.parametrize("sites", [(Site(0),), (Site(1), Site(0)), (Site(2, "block_input"), Site(1))], ids=str)
def test_captures_are_the_hidden_states_of_the_model(sites: tuple[Site, ...]) -> None:
    network = open_subject(load_model(CONFIG)).network
    found = passes.capture(
        network, TEXTS, sites, tokens="completion", pool="mean", intervention=Intervention(), tally=Tally()
    )
    assert set(found) == set(sites)
    model = load_model(CONFIG).model
    for row, text in enumerate(TEXTS):
        states = model(input_ids=torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        for site in sites:
            layer = site.layer + (site.stream == "block")  # the first of them is the embedding
            expected = states[layer][0, len(text.prompt) :].mean(0).float()
            torch.testing.assert_close(found[site][row], expected, atol=1e-6, rtol=0)


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
    passes.capture(network, TEXTS, [Site(1)], tokens="prompt", pool="last", intervention=Intervention(), tally=Tally())
    assert runs == [1, 1] + [0] * (len(runs) - 2)
    passes.loglikelihood(network, TEXTS, Intervention(), Tally())
    assert runs[-1] == 1, "a capture must leave nothing behind that ends later passes"


def test_a_site_that_no_pass_comes_through_is_an_error() -> None:
    network = open_subject(load_model(CONFIG)).network
    last = network.layout.num_layers - 1
    network.model.base_model.layers = network.model.base_model.layers[:last]
    with pytest.raises(ValueError, match=f"does not pass through .*{last}"):
        passes.capture(
            network, TEXTS, [Site(last)], tokens="all", pool="mean", intervention=Intervention(), tally=Tally()
        )
