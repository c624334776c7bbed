"""Single passes over whole texts, steered or not: the pass itself, and log-likelihoods."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harness.steering import Carry, Intervention, Site, Where
from harness.subject.attention import Plan
from harness.subject.hooks import Steering
from harness.subject.logprobs import token_logprobs
from harness.subject.network import Network, Padded, logit_rows, pass_tokens
from harness.subject.prefix import completion_states, memory_of
from harness.subject.tally import Tally

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt and of the completion that follows it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens."""
        return self.prompt + self.completion


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size stays under the limit."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and lengths[index] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def steered_batches(lengths: Sequence[int], limit: int, intervention: Intervention) -> Iterator[list[int]]:
    """As `batches`, but rows that are steered together are computed together, one group after another."""
    if intervention.groups is None:
        yield from batches(lengths, limit)
    else:
        yield from groups_of(intervention.groups)


def groups_of(groups: Int[Tensor, "B"]) -> list[list[int]]:
    """The rows of each group."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    return list(members.values())


@dataclass(frozen=True)
class Passed:
    """What one pass leaves: padded ids, where it went, what edits carried, and the final states if it came so far."""

    ids: Int[Tensor, "B T"]
    where: Where
    carry: Carry
    final: Float[Tensor, "B T D"] | None


Read = Callable[[Site, Tensor, Where], None]
"""Is handed a site's state after its edit."""


class _AllSeenError(Exception):
    """Ends a pass whose further layers nobody asked for."""


def run_pass(
    network: Network,
    texts: Sequence[Text],
    intervention: Intervention,
    tally: Tally,
    sites: Sequence[Site] = (),
    read: Read | None = None,
    *,
    stop: bool = False,
    share: float = 1.0,
) -> Passed:
    """One pass over whole texts, padded on the right, with one row of the intervention for each.

    Args:
        network: the model.
        texts: what it reads.
        intervention: how it is steered.
        tally: where work is counted.
        sites: where `read` looks on, once each.
        read: sees their states.
        stop: compute nothing behind the last of the sites.
        share: of the model that the pass goes through, for the tally.

    Raises:
        ValueError: the model never comes through a site.
    """
    padded = Padded.of([text.ids for text in texts], network.device)
    prompt_lengths = torch.tensor([len(text.prompt) for text in texts], device=network.device)
    where = padded.where(prompt_lengths, intervention.groups)
    tally.count(padded.ids.numel(), int(padded.lengths.sum()), share)
    missing = set(sites)

    def observe(site: Site, _before: Tensor, after: Tensor, seen_from: Where) -> None:
        if site in missing and read is not None:
            missing.remove(site)
            read(site, after, seen_from)
        if stop and not missing:
            raise _AllSeenError

    final = None
    with Steering(network.blocks, intervention, sites, observe if sites else None) as steering:
        steering.where = where
        with contextlib.suppress(_AllSeenError):
            final = network.hidden(padded.ids, padded.positions, Plan())
    if missing:
        raise ValueError(f"the model does not pass through {min(missing)}, so nothing can be read there")
    return Passed(padded.ids, where, steering.carry, final)


def steering_of(intervention: Intervention, rows: Int[Tensor, "R"]) -> Intervention:
    """The intervention for these rows; one that does nothing has none to choose from."""
    return intervention.take(rows) if intervention.edits or intervention.probes else intervention


def _final(network: Network, texts: Sequence[Text], intervention: Intervention, tally: Tally) -> Float[Tensor, "B T D"]:
    passed = run_pass(network, texts, intervention, tally)
    assert passed.final is not None
    return passed.final


def loglikelihood(
    network: Network,
    texts: Sequence[Text],
    intervention: Intervention,
    tally: Tally,
    owners: Sequence[int] | None = None,
) -> list[Float[Tensor, "C"]]:
    """Log-probability in nats of every completion token, given the prompt and the tokens before it.

    Edits that read the whole sequence (``uses_cache=False``) cost a pass for every token of a completion.

    Args:
        network: the model.
        texts: prompts with their completions.
        intervention: row-leading over ``owners``' numbers.
        tally: where work is counted.
        owners: the row of the intervention that each text is steered by; by default its own number. Texts of one owner
            whose completions differ in their last token alone, as the letters of options do, share one pass.

    Raises:
        ValueError: a completion is empty, or rows are steered together: given texts are no samples of one prompt.
    """
    if intervention.groups is not None:
        raise ValueError("a method that steers samples of one prompt together has no likelihood of a text on its own")
    if empty := [index for index, text in enumerate(texts) if not text.completion]:
        raise ValueError(f"{len(empty)} completions have no tokens, the first at index {empty[0]}")
    steered = bool(intervention.edits or intervention.probes)

    # Many completions of few prompts, as of options: each prompt is computed once and kept.
    if not steered and not torch.is_grad_enabled() and 2 * len({text.prompt for text in texts}) <= len(texts):
        return _unsteered_by_prompt(network, texts, tally)

    # What must be read is a row. Texts that differ in their last token alone need the same reading: under the same
    # edits it is done once, and each text has its share of the row.
    contexts: dict[tuple[int, Text], list[_Share]] = {}
    for index, text in enumerate(texts):
        owner = (index if owners is None else owners[index]) if steered else 0
        for context, share in _contexts(text, index, causal=not steered or intervention.uses_cache):
            contexts.setdefault((owner, context), []).append(share)

    logprobs = _read_shares(network, contexts, intervention, tally)
    shares: list[list[_Share]] = [[] for _ in texts]
    for share in sorted(logprobs, key=lambda share: share.first):
        shares[share.text].append(share)
    return [torch.cat([logprobs[share] for share in own]) for own in shares]


def _read_shares(
    network: Network, contexts: Mapping[tuple[int, Text], Sequence[_Share]], intervention: Intervention, tally: Tally
) -> dict[_Share, Float[Tensor, "C"]]:
    """The log-probabilities of every share, from one reading of each context under its owner's edits."""
    logprobs: dict[_Share, Tensor] = {}
    keys = list(contexts)
    for batch in batches([len(context.ids) for _, context in keys], pass_tokens(network.device)):
        chosen = [keys[number] for number in batch]
        rows = torch.tensor([owner for owner, _ in chosen], device=network.device)
        h = _final(network, [context for _, context in chosen], steering_of(intervention, rows), tally)

        # Logits are computed only at the tokens before those that are scored.
        members = [(row, share) for row, key in enumerate(chosen) for share in contexts[key]]
        before = torch.cat([h[row, share.first : share.first + len(share.tokens)] for row, share in members])
        sizes = [len(share.tokens) for _, share in members]
        targets = torch.tensor([token for _, share in members for token in share.tokens], device=network.device)
        parts = token_logprobs(network.logits, logit_rows(network.device), before, targets).split(sizes)
        logprobs.update(zip([share for _, share in members], parts, strict=True))
    return logprobs


class _Share(NamedTuple):
    """Completion tokens of a text that one context predicts: their states begin at position ``first``."""

    text: int
    first: int
    tokens: tuple[int, ...]


def _contexts(text: Text, index: int, *, causal: bool) -> Iterator[tuple[Text, _Share]]:
    """What must be read to score a text's tokens.

    Under causal edits one reading of all but the last token serves every token. An edit that looks at the whole
    sequence would let the scored token, and those behind it, into its own prediction: then each token gets a reading of
    what comes before it, as in generation without a cache.
    """
    start, completion = len(text.prompt) - 1, text.completion
    if causal:
        yield Text(text.prompt, completion[:-1]), _Share(index, start, completion)
        return
    for place, token in enumerate(completion):
        yield Text(text.prompt, completion[:place]), _Share(index, start + place, (token,))


def _unsteered_by_prompt(network: Network, texts: Sequence[Text], tally: Tally) -> list[Float[Tensor, "C"]]:
    """Edits change a prompt's states; without them, texts with the same prompt can share its computation."""
    logprobs: dict[Text, Tensor] = {}
    distinct = list(dict.fromkeys(texts))
    prompts = [text.prompt for text in distinct]

    for part in memory_of(network).parts(network, prompts, network.layout.num_layers, tally):
        lengths = [len(distinct[index].ids) for index in part.members]
        for batch in batches(lengths, pass_tokens(network.device)):
            chosen = part[batch]
            completions = [distinct[index].completion for index in chosen.members]
            states = completion_states(network, chosen, completions, tally)

            # Logits are computed at the tokens that predict the completions, not at the whole prompt.
            targets = torch.tensor([token for completion in completions for token in completion], device=network.device)
            scored = token_logprobs(network.logits, logit_rows(network.device), torch.cat(states), targets)
            parts = scored.split([len(completion) for completion in completions])
            logprobs.update(zip([distinct[index] for index in chosen.members], parts, strict=True))
    return [logprobs[text] for text in texts]


@torch.no_grad()
def next_token_logprobs(
    network: Network, prompts: Sequence[Sequence[int]], intervention: Intervention, tally: Tally
) -> Float[Tensor, "N V"]:
    """Log-probabilities of every possible next token after each prompt."""
    logprobs: dict[int, Tensor] = {}
    for batch in steered_batches([len(prompt) for prompt in prompts], pass_tokens(network.device), intervention):
        rows = torch.tensor(batch, device=network.device)
        texts = [Text(tuple(prompts[index])) for index in batch]
        h = _final(network, texts, steering_of(intervention, rows), tally)
        last = h[torch.arange(len(batch), device=h.device), [len(text.prompt) - 1 for text in texts]]
        logprobs.update(zip(batch, torch.log_softmax(network.logits(last), -1), strict=True))
    return torch.stack([logprobs[index] for index in range(len(prompts))])
