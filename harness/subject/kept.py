"""What a model makes of texts in front of the first edit: computed once for a whole training.

An edit at a deep layer changes nothing before it, and a training reads the same texts in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.model_view import KeptStates
from harness.steering import Intervention, Site
from harness.subject.attention import Plan
from harness.subject.hooks import skipped, stopped_behind
from harness.subject.network import Network, Padded, pass_tokens
from harness.subject.passes import Text, batches
from harness.subject.prefix import shared_depth

if TYPE_CHECKING:
    from jaxtyping import Float

    from harness.subject.tally import Tally

_MOST_BYTES = 2**31
"""Host memory for the states of one training. It does not depend on what is free, so that a restart keeps them too, or
does without again."""


@dataclass(frozen=True, eq=False)
class TextStates(KeptStates):
    """States of texts behind the first ``depth`` blocks, which no edit has touched.

    Args:
        depth: how many blocks.
        states: T x D of each text, in the model's dtype, in the host's memory.
        in_tuple: the model's blocks give out their states in a tuple.
    """

    depth: int
    states: Mapping[Text, Float[Tensor, "T D"]]
    in_tuple: bool

    def serve(self, texts: Iterable[Text], intervention: Intervention, sites: Sequence[Site], num_layers: int) -> bool:
        """Whether a pass over these texts may begin behind these blocks: nothing acts or is read in them."""
        deepest = shared_depth(intervention, num_layers, sites)
        return deepest >= self.depth and all(text in self.states for text in texts)

    def skipping(
        self, blocks: Sequence[nn.Module], texts: Sequence[Text], device: torch.device
    ) -> AbstractContextManager[None]:
        """Let the pass over these texts begin behind the blocks: these compute nothing."""
        longest = max(len(text.ids) for text in texts)
        padded = []
        for text in texts:
            own = self.states[text]
            # Padding repeats the last token, for an edit's gradient may not exist at a state of zeros.
            padded.append(torch.cat([own, own[-1:].expand(longest - len(own), -1)]))
        return skipped(blocks[: self.depth], torch.stack(padded).to(device), in_tuple=self.in_tuple)


@torch.inference_mode(False)  # or a training could take no gradients through what it begins with
@torch.no_grad()
def keep(network: Network, texts: Sequence[Text], intervention: Intervention, tally: Tally) -> TextStates | None:
    """See `harness.types.Subject.keep`.

    Batches are made of all the texts by their lengths alone: a training that was killed begins with the same bits.
    """
    depth = shared_depth(intervention, network.layout.num_layers)
    distinct = list(dict.fromkeys(texts))
    num_tokens = sum(len(text.ids) for text in distinct)
    size = num_tokens * network.layout.width * network.dtype.itemsize
    acts = bool(intervention.edits or intervention.probes)
    if not acts or not depth or size > _MOST_BYTES:
        return None

    blocks, states, in_tuple = network.blocks.modules, dict[Text, Tensor](), False
    for batch in batches([len(text.ids) for text in distinct], pass_tokens(network.device)):
        chosen = [distinct[index] for index in batch]
        padded = Padded.of([text.ids for text in chosen], network.device)
        tally.count(padded.ids.numel(), int(padded.lengths.sum()), depth / len(blocks))
        with stopped_behind(blocks[depth - 1]) as outputs:
            network.hidden(padded.ids, padded.positions, Plan())
        (output,) = outputs
        in_tuple = isinstance(output, tuple)
        h = output[0] if in_tuple else output
        for row, text in enumerate(chosen):
            states[text] = h[row, : len(text.ids)].to("cpu", copy=True)
    return TextStates(depth, states, in_tuple)
