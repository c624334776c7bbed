"""A pass with gradients, for methods that train: states with their graph, log-probabilities, logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from harness.model_view import Forward
from harness.steering import Intervention, Site, Where
from harness.subject.kept import TextStates
from harness.subject.logprobs import token_logprobs
from harness.subject.network import Network, logit_rows
from harness.subject.passes import Text, run_pass
from harness.subject.tally import Tally


def forward(
    network: Network,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    intervention: Intervention,
    logits: bool,
    tally: Tally,
    kept: TextStates | None = None,
) -> Forward:
    """See `harness.types.Subject.forward`."""
    states: dict[Site, Tensor] = {}

    def keep(site: Site, h: Tensor, _where: Where) -> None:
        states[site] = h

    run = partial(run_pass, network, texts, intervention, tally, sites, keep, stop=not logits)
    blocks = network.blocks.modules
    if kept is not None and kept.serve(texts, intervention, sites, len(blocks)):
        with kept.skipping(blocks, texts, network.device):
            passed = run(share=1 - kept.depth / len(blocks))
    else:
        passed = run()
    logprobs_of = partial(token_logprobs, network.logits, logit_rows(network.device))
    return Forward(passed.ids, passed.where, states, passed.carry, passed.final, logprobs_of, network.logits)
