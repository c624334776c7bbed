"""The subject: a loaded model behind the narrow interface that methods and the runner use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from harness.model_view import Architecture, Forward, KeptStates, TokenCount, TokenStates
from harness.steering import Intervention, Layout, Site, Tokens
from harness.subject import passes
from harness.subject.architecture import architecture_of
from harness.subject.batch import Decoded
from harness.subject.capture import capture, capture_tokens
from harness.subject.captured import captures_of
from harness.subject.decode import Decoder
from harness.subject.forward import forward
from harness.subject.kept import TextStates, keep
from harness.subject.network import Network
from harness.subject.passes import Text
from harness.subject.prefix import memory_of
from harness.subject.sampling import Sampling
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.workspace import Workspace

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Template:
    """How a question becomes the text that the model reads.

    Args:
        prompt: text with ``{question}``.
        chat: wrap it in the tokenizer's chat template as one user message.
    """

    prompt: str = "{question}"
    chat: bool = True

    def __post_init__(self) -> None:
        """Refuse a template that drops the question."""
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt_template must contain {{question}}, got '{self.prompt}'")

    def render(self, tokenizer: Any, question: str, instruction: str = "") -> str:
        """The exact prompt text, special tokens included."""
        text = self.prompt.replace("{question}", question)
        if instruction:
            text = f"{instruction}\n\n{text}"
        if not self.chat:
            return f"{_leading_special(tokenizer)}{text}"
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this model has no chat template; set model.chat_template=false")
        message = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _leading_special(tokenizer: Any) -> str:
    ids = tokenizer("x").input_ids
    bare = tokenizer("x", add_special_tokens=False).input_ids
    return tokenizer.decode(ids[: len(ids) - len(bare)]) if ids[-len(bare) :] == bare else ""


@dataclass(frozen=True, eq=False)
class LocalSubject:
    """A model on this machine. Implements `harness.types.Subject`.

    Args:
        network: the model.
        tokenizer: its tokenizer.
        template: how a question becomes a prompt.
        name: what it is called in tables.
        engine: how large batches are.
        tally: where work is counted.
        instruction: text placed before every question, the same for all.
        workspace: what fits keep and show.
    """

    network: Network
    tokenizer: Any
    template: Template
    name: str
    engine: EngineConfig = EngineConfig()
    tally: Tally = field(default_factory=Tally)
    instruction: str = ""
    workspace: Workspace = field(default_factory=Workspace)

    @property
    def layout(self) -> Layout:
        """Number of layers and widths."""
        return self.network.layout

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.network.device

    @property
    def architecture(self) -> Architecture:
        """See `harness.types.Subject.architecture`."""
        return architecture_of(self.network)

    @property
    def prefix_length(self) -> int:
        """Tokens that every rendered prompt begins with."""
        return self._prefix_length

    @cached_property
    def _prefix_length(self) -> int:
        rendered = [self.encode(self.render(question)) for question in ("", "1", "2")]
        columns = zip(*rendered, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))

    def render(self, prompt: str, instruction: str | None = None, raw: bool = False) -> str:
        """The exact text that the model reads for a prompt.

        Args:
            prompt: the question.
            instruction: placed before it; None takes the subject's own.
            raw: take the prompt as it is, without template and instruction.
        """
        if raw:
            return Template(chat=False).render(self.tokenizer, prompt)
        return self.template.render(self.tokenizer, prompt, self.instruction if instruction is None else instruction)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a rendered prompt."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _prompt_ids(self, prompt: str, raw: bool) -> tuple[int, ...]:
        return self.encode(self.render(prompt, raw=raw))

    def _texts(self, prompts: Sequence[str], completions: Sequence[str] | None, raw: bool) -> list[Text]:
        completions = [""] * len(prompts) if completions is None else completions
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
        return [
            Text(self._prompt_ids(prompt, raw), self.encode(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def token_counts(
        self, prompts: Sequence[str], completions: Sequence[str], *, raw: bool = False
    ) -> list[TokenCount]:
        """See `harness.types.Subject.token_counts`."""
        texts = self._texts(prompts, completions, raw)
        return [TokenCount(len(text.prompt), len(text.completion)) for text in texts]

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
        """See `harness.types.Subject.capture`."""
        texts, steering = self._texts(prompts, completions, raw), intervention or Intervention()

        def computed() -> Iterator[Mapping[Site, Tensor]]:
            yield capture(self.network, texts, sites, tokens=tokens, pool=pool, intervention=steering, tally=self.tally)

        if _steers(steering):
            return dict(next(computed()))
        key = ("pooled", tuple(texts), tuple(sites), tokens, pool)
        (states,) = captures_of(self.network).recalled(key, computed, self.tally, self.device)
        return dict(states)

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
        """See `harness.types.Subject.capture_tokens`."""
        texts, steering = self._texts(prompts, completions, raw), intervention or Intervention()

        def computed() -> Iterator[TokenStates]:
            return capture_tokens(self.network, texts, sites, tokens=tokens, intervention=steering, tally=self.tally)

        if _steers(steering):
            return computed()
        key = ("tokens", tuple(texts), tuple(sites), tokens)
        return captures_of(self.network).recalled(key, computed, self.tally, self.device)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> list[str]:
        """See `harness.types.Subject.generate`."""
        ids = [self._prompt_ids(prompt, raw) for prompt in prompts]
        decoded = self.decode(ids, intervention or Intervention(), Sampling(max_new_tokens))
        return [self.decode_text(row.token_ids) for row in decoded]

    def loglikelihood(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        intervention: Intervention | None = None,
        raw: bool = False,
    ) -> list[Float[Tensor, "C"]]:
        """See `harness.types.Subject.loglikelihood`."""
        texts = self._texts(prompts, completions, raw)
        with torch.no_grad():
            return passes.loglikelihood(self.network, texts, intervention or Intervention(), self.tally)

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
        """See `harness.types.Subject.forward`."""
        texts, steering = self._texts(prompts, completions, raw), intervention or Intervention()
        assert kept is None or isinstance(kept, TextStates)
        return forward(self.network, texts, sites, intervention=steering, logits=logits, tally=self.tally, kept=kept)

    def keep(
        self, prompts: Sequence[str], completions: Sequence[str], intervention: Intervention, *, raw: bool = False
    ) -> TextStates | None:
        """See `harness.types.Subject.keep`."""
        return keep(self.network, self._texts(prompts, completions, raw), intervention, self.tally)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "N V"]:
        """Log-probabilities of every possible next token after each prompt, un-steered; prompts are token ids."""

        def computed() -> Iterator[Mapping[str, Tensor]]:
            yield {"logprobs": passes.next_token_logprobs(self.network, prompts, Intervention(), self.tally)}

        key = ("next token", tuple(map(tuple, prompts)))
        (after_prompts,) = captures_of(self.network).recalled(key, computed, self.tally, self.device)
        return after_prompts["logprobs"]

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        intervention: Intervention,
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[Decoded]:
        """Batched decoding with per-row edits; prompts are token ids."""
        decoder = self.decoder(sampling)
        decoder.offer(prompts, intervention, seeds or [0] * len(prompts))
        return decoder.run(self.engine, on_finish)

    def decoder(self, sampling: Sampling) -> Decoder:
        """An engine without rows, which are to be offered to it."""
        return Decoder(self.network, [], Intervention(), sampling, [], self.tally)

    def forget_prompts(self) -> None:
        """Free the states of prompts that are kept, so that what follows does not depend on what was computed before.

        Prompts that are known leave the others to be computed in smaller batches, which can change their last digits.
        """
        memory_of(self.network).forget()

    def forget_captures(self) -> None:
        """Free the states of captures that are kept, so that what follows is computed: weights may have changed."""
        captures_of(self.network).forget()

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of a completion."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def _steers(intervention: Intervention) -> bool:
    return bool(intervention.edits or intervention.probes or intervention.groups is not None)


@dataclass(frozen=True, eq=False)
class SubjectScorer:
    """The un-steered subject as a scorer. Implements `harness.types.Scorer`.

    Args:
        subject: the model.
        skipped: cut from the start of texts that begin with it.
    """

    subject: LocalSubject
    skipped: str = ""

    @property
    def name(self) -> str:
        """Which model scores."""
        return self.subject.name

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """Summed log-probability in nats and number of tokens of each completion, prompts as they are."""
        subject, pairs = self.subject, zip(prompts, completions, strict=True)
        # Without a prompt, the completion is the whole text.
        cut = [(p.removeprefix(self.skipped), c if p else c.removeprefix(self.skipped)) for p, c in pairs]
        texts = [_scored_text(subject.encode(p), subject.encode(c)) for p, c in cut]
        scored = [index for index, text in enumerate(texts) if text.completion]
        results = [(0.0, 0)] * len(texts)
        with torch.no_grad():
            rows = passes.loglikelihood(
                subject.network, [texts[index] for index in scored], Intervention(), subject.tally
            )
        for index, row in zip(scored, rows, strict=True):
            results[index] = (float(row.sum()), len(row))
        return results


def _scored_text(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Text:
    # Without a prompt, nothing predicts the first token: it becomes the context and is not scored.
    return Text(prompt, completion) if prompt else Text(completion[:1], completion[1:])
