"""Every stream of every family: captures are what a hook of one's own sees there, and edits act there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from engine_parts import hooks_of, one_thread  # noqa: F401
from torch import Tensor, nn

from harness.steering import STORED_STREAMS
from harness.subject import tiny
from harness.subject.load import ModelConfig, load_model, resolve
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.types import Carry, Edit, Intervention, Site, Stream, Where
from methods.austeer import AUSteer
from methods.single_vector import SingleVector

LLAMA = {
    "block_input": (".", "in"),
    "attention_norm_input": ("input_layernorm", "in"),
    "attention_norm": ("input_layernorm", "out"),
    "heads": ("self_attn.o_proj", "in"),
    "attention": ("self_attn", "out"),
    "mlp_norm_input": ("post_attention_layernorm", "in"),
    "mlp_norm": ("post_attention_layernorm", "out"),
    "neurons": ("mlp.down_proj", "in"),
    "mlp": ("mlp", "out"),
    "block": (".", "out"),
}
GEMMA = LLAMA | {
    "mlp_norm_input": ("pre_feedforward_layernorm", "in"),
    "mlp_norm": ("pre_feedforward_layernorm", "out"),
    "attention_post_norm": ("post_attention_layernorm", "out"),
    "mlp_post_norm": ("post_feedforward_layernorm", "out"),
}
GPT2 = LLAMA | {
    "attention_norm_input": ("ln_1", "in"),
    "attention_norm": ("ln_1", "out"),
    "heads": ("attn.c_proj", "in"),
    "attention": ("attn", "out"),
    "mlp_norm_input": ("ln_2", "in"),
    "mlp_norm": ("ln_2", "out"),
    "neurons": ("mlp.c_proj", "in"),
}
NEOX = LLAMA | {
    "heads": ("attention.dense", "in"),
    "attention": ("attention", "out"),
    "neurons": ("mlp.dense_4h_to_h", "in"),
}
PLACES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("model.layers", LLAMA)),
    **dict.fromkeys(("gemma2", "gemma3_text"), ("model.layers", GEMMA)),
    "gpt2": ("transformer.h", GPT2),
    "gpt_neox": ("gpt_neox.layers", NEOX),
}
"""Where each stream lives, as one would hook it by hand in transformers' own module names."""
CASES = [(family, stream) for family, (_, places) in PLACES.items() for stream in places]
LAYER = 1
PROMPTS, COMPLETIONS = ["one two", "a longer question"], ["x", "yes!"]


def config_of(family: str) -> ModelConfig:
    return ModelConfig(kind="tiny", family=family, device="cpu", dtype="float64", chat_template=False)


@cache
def subject_of(family: str) -> LocalSubject:
    return open_subject(load_model(config_of(family)))


@cache
def plain_model(family: str) -> nn.Module:
    """The same weights in a model that the harness never touched."""
    return load_model(config_of(family)).model


@dataclass(frozen=True, eq=False)
class Push(Edit):
    """A fixed pattern on the tokens of one kind of text."""

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return where.keep(pushed(h), h), carry


def pushed(h: Tensor) -> Tensor:
    return h + torch.linspace(-1, 1, h.shape[-1], dtype=h.dtype)


@contextmanager
def hooked(model: nn.Module, family: str, stream: str, change: Any) -> Iterator[None]:
    """A hook by hand: ``change`` maps the state at the stream to the one to go on with."""
    path, places = PLACES[family]
    part, side = places[stream]
    block = model.get_submodule(path)[LAYER]  # pyright: ignore[reportIndexIssue]
    module = block if part == "." else block.get_submodule(part)

    def after(_module: object, _args: object, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def before(_module: object, args: tuple, kwargs: dict) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    handle = (
        module.register_forward_hook(after)
        if side == "out"
        else module.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        yield
    finally:
        handle.remove()


def by_hand(family: str, stream: str, change: Any) -> list[Tensor]:
    """Logits of each text alone, by a model that the harness never touched."""
    loaded, subject = plain_model(family), subject_of(family)
    logits = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = [*subject.encode(subject.render(prompt)), *subject.encode(completion)]
        with hooked(loaded, family, stream, change), torch.no_grad():
            logits.append(loaded(input_ids=torch.tensor([ids])).logits[0])
    return logits


def test_every_tiny_family_is_covered() -> None:
    assert set(PLACES) == set(tiny.FAMILIES)


@pytest.mark.parametrize(("family", "stream"), CASES)
def test_a_capture_is_what_a_hook_sees(family: str, stream: Stream) -> None:
    subject, site = subject_of(family), Site(LAYER, stream)
    seen: list[Tensor] = []
    by_hand(family, stream, lambda h: seen.append(h[0]) or h)

    outputs = {}
    for chunk in subject.capture_tokens(PROMPTS, COMPLETIONS, [site]):
        for text in chunk.text.unique().tolist():
            outputs[text] = chunk.states[site][chunk.text == text]
    for text, expected in enumerate(seen):
        assert expected.shape[1] == subject.layout.site_width(site)
        torch.testing.assert_close(outputs[text], expected.float(), rtol=1e-5, atol=1e-5)

    pooled = subject.capture(PROMPTS, COMPLETIONS, [site])[site]
    torch.testing.assert_close(pooled, torch.stack([h.mean(0) for h in seen]).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "stream"), CASES)
def test_an_edit_acts_there_and_nowhere_else(family: str, stream: Stream) -> None:
    subject = subject_of(family)
    expected, unsteered = by_hand(family, stream, pushed), by_hand(family, stream, lambda h: h)
    passed = subject.forward(PROMPTS, COMPLETIONS, intervention=Intervention({Site(LAYER, stream): Push()}))
    for row, logits in enumerate(expected):
        only = torch.zeros_like(passed.real)
        only[row] = passed.real[row]
        own = passed.logits(only)
        torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-5)  # norms compute in float32
        assert not torch.allclose(own, unsteered[row], atol=1e-3)
    assert hooks_of(subject.network) == 0


@pytest.mark.parametrize("family", PLACES)
def test_a_stream_that_a_family_lacks_is_refused_before_weights_load(family: str) -> None:
    layout = resolve(config_of(family)).layout
    present = {*PLACES[family][1], *STORED_STREAMS}
    assert layout.absent == set(get_args(Stream)) - present
    for stream in layout.absent:
        with pytest.raises(ValueError, match=f"stream must be one that this model has .*got '{stream}'"):
            SingleVector(stream=stream).check(layout)
        with pytest.raises(ValueError, match=f"stream must be one of .*; got '{stream}'"):
            subject_of(family).network.blocks.module(Site(0, stream))
    for stream in present:
        SingleVector(stream=stream).check(layout)  # pyright: ignore[reportArgumentType]
    AUSteer(stream="heads").check(layout)
