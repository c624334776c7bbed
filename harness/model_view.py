"""What a method sees of the model: activations, texts, likelihoods, passes with gradients. Part of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.steering import Carry, Intervention, Layout, Site, Tokens, Where
from harness.workspace import Workspace

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Activations of a few texts, token by token, in float32.

    Args:
        states: of each site, one row per token.
        text: which text each token belongs to, counted from 0 over all texts of the capture.
        position: where in its text it stands, from 0.
        token: its id.
    """

    states: Mapping[Site, Float[Tensor, "M D"]]
    text: Int[Tensor, "M"]
    position: Int[Tensor, "M"]
    token: Int[Tensor, "M"]

    def where(self, chosen: Bool[Tensor, "M"]) -> TokenStates:
        """The chosen tokens alone."""
        states = {site: h[chosen] for site, h in self.states.items()}
        return TokenStates(states, self.text[chosen], self.position[chosen], self.token[chosen])


class KeptStates:
    """What a model makes of texts in front of the first edit. Made by `Subject.keep` for `Subject.forward`."""


class TokenCount(NamedTuple):
    """Length of a text in tokens."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclass(frozen=True, eq=False)
class Forward:
    """One pass over a batch of texts, padded on the right, as `Subject.forward` returns it.

    Under ``torch.enable_grad`` all its tensors carry the graph through whatever the intervention did.

    Args:
        ids: token ids; 0 on padding.
        where: positions, real tokens and prompt lengths.
        states: of each site asked for, after the edit of that site, in the model's dtype.
        carry: what edits and probes left behind: also their side losses.
        final: states after the last block and the final norm; None if logits were not asked for.
        logprobs_of: log-probability in nats of each target, from the final state of the token before it.
        logits_of: next-token logits in float32 of final states.
    """

    ids: Int[Tensor, "B T"]
    where: Where
    states: Mapping[Site, Float[Tensor, "B T D"]]
    carry: Carry
    final: Float[Tensor, "B T D"] | None
    logprobs_of: Callable[[Float[Tensor, "M D"], Int[Tensor, "M"]], Float[Tensor, "M"]]
    logits_of: Callable[[Float[Tensor, "M D"]], Float[Tensor, "M V"]]

    @property
    def real(self) -> Bool[Tensor, "B T"]:
        """False on padding."""
        real = self.where.real
        return torch.ones_like(self.ids, dtype=torch.bool) if real is None else real

    @property
    def completion(self) -> Bool[Tensor, "B T"]:
        """The completions' tokens."""
        return self.real & (self.where.positions >= self.where.prompt_lengths[:, None])

    @property
    def predicting(self) -> Bool[Tensor, "B T"]:
        """The tokens whose output chooses a token of the completion: the one before each."""
        return torch.cat([self.completion[:, 1:], torch.zeros_like(self.ids[:, :1], dtype=torch.bool)], 1)

    def logprobs(self, tokens: Literal["completion", "all"] = "completion") -> Float[Tensor, "B T"]:
        """Log-probability in nats of every token, given those before it; 0 for tokens that are not chosen.

        The gradient is computed along with the values, a few tokens at a time, so that the logits of a large vocabulary
        never exist for the whole batch. It can be used once: there is no gradient of the gradient.

        Args:
            tokens: the completions' tokens, or every token but the first.
        """
        chosen = self.completion if tokens == "completion" else self.real.clone()
        chosen[:, 0] = False
        before = torch.cat([chosen[:, 1:], torch.zeros_like(chosen[:, :1])], 1)

        values = self.logprobs_of(self._final[before], self.ids[chosen])
        return values.new_zeros(self.ids.shape).masked_scatter(chosen, values)

    def logits(self, at: Bool[Tensor, "B T"]) -> Float[Tensor, "M V"]:
        """Next-token logits at the chosen tokens, row by row: all of them at once, so choose few."""
        return self.logits_of(self._final[at])

    def logit_pieces(self, at: Bool[Tensor, "B T"], size: int) -> Iterator[Float[Tensor, "P V"]]:
        """The same in pieces of at most ``size`` tokens, for vocabularies too large for all of them."""
        for part in self._final[at].split(size):
            yield self.logits_of(part)

    @property
    def _final(self) -> Float[Tensor, "B T D"]:
        if self.final is None:
            raise ValueError("this pass ended behind the last site that was asked for: ask for logits=True")
        return self.final


@dataclass(frozen=True, eq=False)
class Architecture:
    """How a model's blocks are made, and copies of their weights: for methods with networks that are built like them.

    Args:
        num_heads: query heads of a block.
        num_key_heads: key heads, which the query heads share.
        head_width: width of a head.
        epsilon: of the RMS norms.
        norm_offset: what is added to a norm's weight: 1 for Gemma, 0 for Llama.
        activation: of the gated MLP, "silu" or "gelu_tanh".
        softcap: bound of attention scores; 0 for none.
        attention_scale: factor of attention scores.
        rotary_scale: factor of cosines and sines.
        frequencies: of the rotary positions, in radians per token, for each pair of a head's dimensions.
        final_norm: weight of the norm behind the last block.
        block: float32 copies of a layer's weights, named by part, e.g. ``attention.q_proj.weight``.
    """

    num_heads: int
    num_key_heads: int
    head_width: int
    epsilon: float
    norm_offset: float
    activation: Literal["silu", "gelu_tanh"]
    softcap: float
    attention_scale: float
    rotary_scale: float
    frequencies: Float[Tensor, "F"]
    final_norm: Float[Tensor, "D"]
    block: Callable[[int], Mapping[str, Tensor]]


class Subject(Protocol):
    """All that a method sees of the model under study.

    Prompts are rendered with the run's template and the method's instruction, as the run itself does it; ``raw=True``
    takes them as they are.
    """

    @property
    def layout(self) -> Layout:
        """Number of layers and widths."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model lives: captured activations are there, and what is learnt should be."""
        ...

    @property
    def prefix_length(self) -> int:
        """Tokens that every rendered prompt begins with: beginning-of-text mark, template, instruction."""
        ...

    @property
    def workspace(self) -> Workspace:
        """Where a fit keeps checkpoints, shows progress and adds up its cost."""
        ...

    @property
    def architecture(self) -> Architecture:
        """How the model's blocks are made; ValueError for families that are not of Llama's kind."""
        ...

    def token_counts(
        self, prompts: Sequence[str], completions: Sequence[str], *, raw: bool = False
    ) -> list[TokenCount]:
        """Length of each text in tokens, as the other functions read it."""
        ...

    def capture(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | None,
        sites: Sequence[Site],
        *,
        tokens: Tokens = "all",
        pool: Literal["mean", "last"] = "mean",
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> dict[Site, Float[Tensor, "N D"]]:
        """Activations over the chosen tokens of ``prompt + completion``, pooled per text, in float32.

        States are read after the edit of the same site, if there is one. ``pool="last"`` reads the last chosen token.
        """
        ...

    def capture_tokens(
        self,
        prompts: Sequence[str],
        completions: Sequence[str] | None,
        sites: Sequence[Site],
        *,
        tokens: Tokens = "all",
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> Iterator[TokenStates]:
        """Activations of every chosen token, a batch of texts at a time: add up what is needed and let go of the rest.

        Texts come in order of length, not in the given order; each is whole in one chunk, its tokens in order.
        """
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> list[str]:
        """Greedy completions."""
        ...

    def loglikelihood(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> list[Float[Tensor, "C"]]:
        """Log-probability (nats) of every completion token, given the prompt and the tokens before it."""
        ...

    def forward(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        sites: Sequence[Site] = (),
        intervention: Intervention | None = None,
        raw: bool = False,
        logits: bool = True,
        kept: KeptStates | None = None,
    ) -> Forward:
        """One pass over these texts, with the graph through the intervention's tensors: what methods train with.

        All texts are computed at once, every token of them is fed, the last one too; ``intervention`` has one row per
        text. With ``logits=False`` the pass ends behind the last of ``sites``. With ``kept`` it begins where those
        states lie, if they hold all of the texts, and nothing acts or is read before.
        """
        ...

    def keep(
        self, prompts: Sequence[str], completions: Sequence[str], intervention: Intervention, *, raw: bool = False
    ) -> KeptStates | None:
        """States of texts in front of the first site at which the intervention acts.

        For a training that reads the texts again and again: `forward` begins there. None where the intervention does
        nothing, where few blocks lie before it, or where the states would take too much memory.
        """
        ...
