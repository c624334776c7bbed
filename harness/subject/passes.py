"""Single passes over whole texts: pooled activations and log-likelihoods, steered or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.steering import Intervention, Site, Tokens, Where
from harness.subject.attention import Plan
from harness.subject.decode import Tally
from harness.subject.hooks import Observer, Steering
from harness.subject.network import Network, Padded, logit_rows, pass_tokens
from harness.subject.prefix import by_prompt, hidden_before_completions

if TYPE_CHECKING:
    from jaxtyping import Float


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


def _pass(
    network: Network,
    texts: Sequence[Text],
    intervention: Intervention,
    tally: Tally,
    observed: Sequence[Site] = (),
    observer: Observer | None = None,
) -> tuple[Float[Tensor, "B T D"], Padded]:
    padded = Padded.of([text.ids for text in texts], network.device)
    prompt_lengths = torch.tensor([len(text.prompt) for text in texts], device=network.device)
    tally.forward_tokens += padded.ids.numel()
    tally.padding_tokens += padded.ids.numel() - int(padded.lengths.sum())
    with Steering(network.blocks, intervention, observed, observer) as steering:
        steering.where = padded.where(prompt_lengths)
        h = network.hidden(padded.ids, padded.positions, Plan())
    return h, padded


@torch.no_grad()
def capture(
    network: Network,
    texts: Sequence[Text],
    sites: Sequence[Site],
    *,
    tokens: Tokens,
    pool: Literal["mean", "last"],
    intervention: Intervention,
    tally: Tally,
) -> dict[Site, Float[Tensor, "N D"]]:
    """Activations after the edit of each site, pooled over the chosen tokens of each text, float32.

    Nothing is computed behind the last of the sites.

    Raises:
        ValueError: a text has none of the chosen tokens, or the model never comes through a site.
    """
    found = {site: torch.empty(len(texts), network.layout.site_width(site), device=network.device) for site in sites}
    for batch in batches([len(text.ids) for text in texts], pass_tokens(network.device)):
        rows = torch.tensor(batch, device=network.device)
        missing = set(sites)

        def observe(
            site: Site, _before: Tensor, after: Tensor, where: Where, rows: Tensor = rows, missing: set[Site] = missing
        ) -> None:
            if site in missing:
                found[site][rows] = _pooled(after.float(), where, tokens, pool)
                missing.remove(site)
            if not missing:
                raise _AllSeenError

        steered = intervention.take(rows) if intervention.edits or intervention.probes else intervention
        with contextlib.suppress(_AllSeenError):
            _pass(network, [texts[index] for index in batch], steered, tally, sites, observe)
        if missing:
            raise ValueError(f"the model does not pass through {min(missing)}, so nothing can be read there")
    return found


class _AllSeenError(Exception):
    """Ends a pass whose further layers nobody asked for."""


def _pooled(h: Tensor, where: Where, tokens: Tokens, pool: Literal["mean", "last"]) -> Float[Tensor, "B D"]:
    mask = where.mask(tokens)
    if mask is not None and not bool(mask.any(1).all()):
        raise ValueError(f"a text has no tokens of the kind '{tokens}' to read activations from")
    if pool == "mean":
        return where.mean(h, tokens)
    at = where.positions if mask is None else where.positions.masked_fill(~mask, -1)
    return h[torch.arange(h.shape[0], device=h.device), at.argmax(1)]


def loglikelihood(
    network: Network,
    texts: Sequence[Text],
    intervention: Intervention,
    tally: Tally,
    owners: Sequence[int] | None = None,
) -> list[Float[Tensor, "C"]]:
    """Log-probability in nats of every completion token. Keeps the graph if gradients are enabled.

    Args:
        network: the model.
        texts: prompts with their completions.
        intervention: row-leading over ``owners``' numbers.
        tally: where work is counted.
        owners: the row of the intervention that each text is steered by; by default its own number. Texts of one owner
            whose completions differ in their last token alone, as the letters of options do, share one pass.

    Raises:
        ValueError: a completion is empty.
    """
    if empty := [index for index, text in enumerate(texts) if not text.completion]:
        raise ValueError(f"{len(empty)} completions have no tokens, the first at index {empty[0]}")
    steered = bool(intervention.edits or intervention.probes)
    if not steered and not torch.is_grad_enabled() and 2 * len({text.prompt for text in texts}) <= len(texts):
        return _unsteered_by_prompt(network, texts, tally)
    # What comes last predicts nothing, but an edit that is not causal may look at it.
    last = None if steered and not intervention.uses_cache else -1
    contexts: dict[tuple[int, Text], list[int]] = {}
    for index, text in enumerate(texts):
        owner = (index if owners is None else owners[index]) if steered else 0
        contexts.setdefault((owner, Text(text.prompt, text.completion[:last])), []).append(index)
    found: dict[int, Tensor] = {}
    keys = list(contexts)
    for batch in batches([len(context.ids) for _, context in keys], pass_tokens(network.device)):
        chosen = [keys[number] for number in batch]
        rows = torch.tensor([owner for owner, _ in chosen], device=network.device)
        edits = intervention.take(rows) if steered else intervention
        h, _ = _pass(network, [context for _, context in chosen], edits, tally)
        members = [(row, index) for row, key in enumerate(chosen) for index in contexts[key]]
        starts = [len(texts[index].prompt) - 1 for _, index in members]
        sizes = [len(texts[index].completion) for _, index in members]
        before = torch.cat(
            [h[row, start : start + size] for (row, _), start, size in zip(members, starts, sizes, strict=True)]
        )
        targets = torch.tensor(
            [token for _, index in members for token in texts[index].completion], device=network.device
        )
        parts = _token_logprobs(network, before, targets).split(sizes)
        found.update(zip([index for _, index in members], parts, strict=True))
    return [found[index] for index in range(len(texts))]


def _unsteered_by_prompt(network: Network, texts: Sequence[Text], tally: Tally) -> list[Float[Tensor, "C"]]:
    """Edits change a prompt's states; without them, texts with the same prompt can share its computation."""
    found: dict[int, Tensor] = {}
    lengths = [len(text.ids) for text in texts]
    for batch in by_prompt([text.prompt for text in texts], pass_tokens(network.device), lengths):
        chosen = [texts[index] for index in batch]
        completions = [text.completion for text in chosen]
        states, tokens = hidden_before_completions(network, [text.prompt for text in chosen], completions)
        tally.forward_tokens += tokens
        targets = torch.tensor([token for completion in completions for token in completion], device=network.device)
        scored = _token_logprobs(network, torch.cat(states), targets)
        found.update(zip(batch, scored.split([len(completion) for completion in completions]), strict=True))
    return [found[index] for index in range(len(texts))]


def _token_logprobs(network: Network, h: Float[Tensor, "N D"], targets: Tensor) -> Float[Tensor, "N"]:
    parts, rows = [], logit_rows(network.device)
    for start in range(0, h.shape[0], rows):
        logits = network.logits(h[start : start + rows])
        picked = logits.gather(1, targets[start : start + rows, None])[:, 0]
        parts.append(picked - logits.logsumexp(-1))
    return torch.cat(parts)


@torch.no_grad()
def next_token_logprobs(
    network: Network, prompts: Sequence[Sequence[int]], intervention: Intervention, tally: Tally
) -> Float[Tensor, "N V"]:
    """Log-probabilities of every possible next token after each prompt."""
    found: dict[int, Tensor] = {}
    for batch in batches([len(prompt) for prompt in prompts], pass_tokens(network.device)):
        rows = torch.tensor(batch, device=network.device)
        steered = intervention.take(rows) if intervention.edits or intervention.probes else intervention
        h, padded = _pass(network, [Text(tuple(prompts[index])) for index in batch], steered, tally)
        last = h[torch.arange(len(batch), device=h.device), padded.lengths - 1]
        found.update(zip(batch, torch.log_softmax(network.logits(last), -1), strict=True))
    return torch.stack([found[index] for index in range(len(prompts))])
