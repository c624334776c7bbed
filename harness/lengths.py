"""Whether prompts and what is to be generated fit into the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.data import Example

if TYPE_CHECKING:
    from harness.workbench import Workbench

_MOST_CHARACTERS_PER_TOKEN = 1000
"""No tokenizer's longest token comes near this: a longer text is refused without being cut into tokens."""


def check_lengths(bench: Workbench, examples: Sequence[Example]) -> None:
    """Make sure that every prompt fits into the model's context with what is generated behind it.

    Args:
        bench: the workbench.
        examples: the items to be run, at least one.

    Raises:
        ValueError: a prompt and ``task.max_new_tokens`` new tokens are more than the model was made for.
    """
    limit, new = context_of(bench), bench.task.max_new_tokens if bench.task.kind != "choice" else 0
    if limit is None:
        return
    prompts = {example.id: bench.prompt(example) for example in examples}
    longest = max(prompts, key=lambda item: len(prompts[item]))
    if len(prompts[longest]) > limit * _MOST_CHARACTERS_PER_TOKEN:
        _refuse(longest, f"{len(prompts[longest]):,} characters", new, limit)

    lengths = {name: len(bench.subject.encode(text)) for name, text in prompts.items()}
    item = max(lengths, key=lengths.__getitem__)
    if lengths[item] + new > limit:
        _refuse(item, f"{lengths[item]:,} tokens", new, limit)


def context_of(bench: Workbench) -> int | None:
    """Positions that the model was made for; None where its configuration does not say."""
    config = bench.subject.network.model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def _refuse(item: str, length: str, new: int, limit: int) -> None:
    raise ValueError(
        f"the longest prompt, of item {item}, has {length}; with {new} new tokens (task.max_new_tokens) that is more "
        f"than the model's context of {limit:,} tokens. Lower them, leave the item out, or choose another model"
    )
