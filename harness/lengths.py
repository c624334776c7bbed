"""Whether prompts, and what is to stand behind them, fit into the model's context. No weights are loaded for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.data import Example
from harness.job import Job
from harness.subject.local import Template
from harness.workbench import instruction_for

_SHOWN = 60
"""Characters of a choice in a message."""
_MOST_CHARACTERS_PER_TOKEN = 1000
"""No tokenizer's longest token comes near this: a longer text is refused without being cut into tokens."""


def check_lengths(job: Job, examples: Sequence[Example]) -> None:
    """Make sure that every prompt fits into the model's context with the new tokens, or each choice, behind it.

    Args:
        job: whose model, prompts and ``task.max_new_tokens`` count.
        examples: the items to be run.

    Raises:
        ValueError: a prompt and what stands behind it are more than the model was made for.
    """
    limit = job.model.context
    if limit is None or not examples:
        return

    tokenizer = job.model.tokenizer()
    texts = [(example, *pair) for example in examples for pair in _texts(job, tokenizer, example)]
    item, prompt, choice = max(texts, key=lambda text: len(text[1]) + len(text[2]))
    if len(prompt) + len(choice) > limit * _MOST_CHARACTERS_PER_TOKEN:
        raise ValueError(
            f"the prompt of item {item.id} has {len(prompt) + len(choice):,} characters, which is more than the "
            f"context of {job.model.config.label}, {limit:,} tokens: leave the item out"
        )

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    new = job.task.max_new_tokens
    counts = [(example, tokens(prompt), choice, tokens(choice) or new) for example, prompt, choice in texts]
    item, length, choice, behind = max(counts, key=lambda count: count[1] + count[3])
    if length + behind > limit:
        what = f"the choice {choice[:_SHOWN]!r}" if choice else f"{new} new tokens (task.max_new_tokens)"
        raise ValueError(
            f"the longest prompt, of item {item.id}, has {length:,} tokens; with {what} that is more than the context "
            f"of {job.model.config.label}, {limit:,} tokens. Lower them, leave the item out, or choose another model"
        )


def _texts(job: Job, tokenizer: Any, example: Example) -> Iterator[tuple[str, str]]:
    """Each prompt that the model reads for an example, and the choice that is put behind it, "" where it writes."""
    config = job.model.config
    template = Template(chat=False) if job.task.raw else Template(config.prompt_template, config.chat_template)
    instruction = instruction_for(example, job.method, job.control)
    if job.task.kind != "choice":
        yield template.render(tokenizer, example.question, instruction), ""
    if job.task.kind != "generate":
        for number, choice in enumerate(example.choices):
            yield template.render(tokenizer, example.replying_to(number).question, instruction), choice
