"""Small models with random weights, one per supported family: nothing to download, fast enough for exhaustive tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from harness.subject.digest import build_once, cache_root

VERSION = 1
"""Bumped by hand whenever a tiny model's weights or tokenizer change."""

_LAYERS, _WIDTH, _HEADS, _INNER, _LENGTH = 4, 64, 4, 128, 1024
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_MARKS = ("<user>", "<assistant>")
_CHAT = (
    "{{ bos_token if starts_with_bos }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_MODERN: dict[str, Any] = {
    "num_hidden_layers": _LAYERS,
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": _INNER,
    "max_position_embeddings": _LENGTH,
    "tie_word_embeddings": False,
}
# Heads that together are wider than the model catch whoever mixes the two widths up.
_WIDE_HEADS: dict[str, Any] = {**_MODERN, "head_dim": 32}
_GEMMA: dict[str, Any] = {**_WIDE_HEADS, "query_pre_attn_scalar": 32, "sliding_window": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _MODERN,
    "mistral": {**_MODERN, "sliding_window": None},
    "qwen2": _MODERN,
    "qwen3": _WIDE_HEADS,
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"] * (_LAYERS // 2)},
    "gpt2": {"n_layer": _LAYERS, "n_embd": _WIDTH, "n_head": _HEADS, "n_inner": _INNER, "n_positions": _LENGTH},
    "gpt_neox": {
        "num_hidden_layers": _LAYERS,
        "hidden_size": _WIDTH,
        "num_attention_heads": _HEADS,
        "intermediate_size": _INNER,
        "max_position_embeddings": _LENGTH,
    },
}
_STARTS_WITH_BOS = {"llama", "mistral", "gemma2", "gemma3_text"}


def tiny_identity(family: str) -> str:
    """Name of the tiny model's exact weights."""
    return f"tiny-{family}-v{VERSION}"


def tiny_folder(family: str) -> Path:
    """Folder with the tiny model of a family, built at the first call.

    Raises:
        ValueError: no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"model.family must be one of {', '.join(FAMILIES)}, got {family!r}")
    folder = cache_root() / "models" / tiny_identity(family)
    if not folder.exists():
        build_once(folder, lambda draft: _write(family, draft))
    return folder


def _write(family: str, folder: Path) -> None:
    tokenizer = byte_tokenizer(family in _STARTS_WITH_BOS)
    random_model(family, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer(starts_with_bos: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, three special tokens and a chat template."""
    special = [*_SPECIAL.values(), *_MARKS]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}

    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if starts_with_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **_SPECIAL, additional_special_tokens=list(_MARKS))
    tokenizer.chat_template = _CHAT.replace("starts_with_bos", str(starts_with_bos).lower())
    return tokenizer


def random_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of a family with weights drawn from a seed of the family's own.

    The weights are larger than a fresh model's, and norms and biases are moved too, so that layers, heads and positions
    all matter to the output.
    """
    tokens = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in _SPECIAL}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **tokens, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    seed = int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.25 * noise if weight.dim() > 1 else weight + 0.1 * noise)
    return model
