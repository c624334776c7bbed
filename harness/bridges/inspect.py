"""A model provider for Inspect: ``inspect eval TASK --model harness/smollm2 -M steer=VECTOR.safetensors``.

Inspect finds it by itself where both are installed. Requests that wait at the same time are answered in one batch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from harness.api.fitted import load_vector
from harness.api.model import Prompts, load
from harness.control import Control
from harness.data import Example
from harness.protocol import Unsteered
from harness.steering import Intervention
from harness.subject.sampling import Sampling
from harness.workbench import Request, Workbench

NEW_TOKENS = 256
"""Length limit of a completion for which Inspect sets none."""
LARGEST_BATCH = 256
_GATHERING_SECONDS = 0.02
"""How long a batch waits for requests that are about to come."""


@dataclass(frozen=True)
class _Waiting:
    """A request that was not answered yet."""

    text: str
    ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    answer: asyncio.Future[ModelOutput]


class HarnessAPI(ModelAPI):
    """A model of the harness, steered or not.

    Args:
        model_name: as for `harness.load`: a name, a hub id, a folder.
        base_url: not used.
        api_key: not used.
        config: Inspect's settings.
        steer: a bundle, or the folder of a finished run; None for the model as it is.
        model_args: as ``model.NAME`` on the harness's command line.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        steer: str | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._model = load(model_name, **model_args)
        self._steered = None if steer is None else load_vector(Path(steer)).at()
        method = Unsteered() if self._steered is None else self._steered.fitted.method
        self._bench = Workbench(self._model.subject, Prompts(), method, Control(), seed=0)
        if self._steered is not None:
            self._steered.fitted.check(self._model)
            self._bench.adopt(self._steered.fitted.artifact)
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    def max_connections(self) -> int:
        """How many requests may wait at the same time: as many as make a good batch."""
        return LARGEST_BATCH

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation.

        Raises:
            ValueError: tools are offered, which these models are not asked to call.
        """
        if tools:
            raise ValueError(f"harness/{self.model_name} calls no tools; {len(tools)} are offered")
        messages = [{"role": message.role, "content": message.text} for message in input]
        subject = self._model.subject
        if subject.template.chat:
            text = subject.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages)

        sampling = Sampling(config.max_tokens or NEW_TOKENS, temperature=config.temperature or 0.0)
        answer: asyncio.Future[ModelOutput] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(text, subject.encode(text), sampling, config.seed or 0, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        """Answer what waits, batch by batch, until nothing does."""
        while self._waiting:
            await asyncio.sleep(_GATHERING_SECONDS)
            # Rows of one batch share their length limit and temperature.
            sampling = self._waiting[0].sampling
            batch = [request for request in self._waiting if request.sampling == sampling][:LARGEST_BATCH]
            self._waiting = [request for request in self._waiting if request not in batch]
            try:
                outputs = await asyncio.to_thread(self._run, batch)
            except Exception as error:  # whoever waits must hear of it
                for request in batch:
                    request.answer.set_exception(error)
                continue
            for request, output in zip(batch, outputs, strict=True):
                request.answer.set_result(output)

    def _run(self, batch: list[_Waiting]) -> list[ModelOutput]:
        subject, intervention = self._model.subject, Intervention()
        if self._steered is not None:
            parameters = dict(self._steered.parameters)
            self._bench.forget_conditions()
            items = [Example(f"request-{place}", request.text) for place, request in enumerate(batch)]
            intervention = self._bench.intervention([Request(item, parameters) for item in items])
        seeds = [request.seed for request in batch]
        rows = subject.decode([request.ids for request in batch], intervention, batch[0].sampling, seeds)

        outputs = []
        for request, row in zip(batch, rows, strict=True):
            message = ChatMessageAssistant(content=subject.decode_text(row.token_ids), source="generate")
            reason = "max_tokens" if row.finish == "length" else "stop"
            read, written = len(request.ids), len(row.token_ids)
            usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
            choice = ChatCompletionChoice(message=message, stop_reason=reason)
            outputs.append(ModelOutput(model=self.model_name, choices=[choice], usage=usage))
        return outputs


@modelapi(name="harness")
def harness_provider() -> type[ModelAPI]:
    """What Inspect calls to find the provider."""
    return HarnessAPI
