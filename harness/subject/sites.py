"""Where the blocks of a model live, by architecture: the only file that knows module names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from harness.steering import STORED_STREAMS, Site, Stream

Part = Literal[
    "attention", "heads", "mlp", "neurons", "attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm"
]
"""A module inside a block. ``heads`` and ``neurons`` are the output projections, whose inputs these streams are."""


@dataclass(frozen=True)
class Family:
    """Dotted paths: the list of blocks inside the model, and the parts inside a block that the family has."""

    blocks: str
    parts: Mapping[Part, str]

    @property
    def absent(self) -> frozenset[Stream]:
        """Streams that blocks of this family do not have."""
        return frozenset(stream for stream in get_args(Stream) if not self._has(stream))

    def _has(self, stream: Stream) -> bool:
        part = "attention" if stream in STORED_STREAMS else stream.removesuffix("_input")
        return stream in ("block", "block_input") or part in self.parts


_LLAMA_PARTS: dict[Part, str] = {
    "attention": "self_attn",
    "heads": "self_attn.o_proj",
    "mlp": "mlp",
    "neurons": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_POST_NORMS: dict[Part, str] = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GEMMA_PARTS: dict[Part, str] = {**_LLAMA_PARTS, "mlp_norm": "pre_feedforward_layernorm", **_POST_NORMS}
_OLMO2_PARTS: dict[Part, str] = {
    **{part: path for part, path in _LLAMA_PARTS.items() if part not in ("attention_norm", "mlp_norm")},
    **_POST_NORMS,
}
_GPT2_PARTS: dict[Part, str] = {
    "attention": "attn",
    "heads": "attn.c_proj",
    "mlp": "mlp",
    "neurons": "mlp.c_proj",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
}
_NEOX_PARTS: dict[Part, str] = {
    "attention": "attention",
    "heads": "attention.dense",
    "mlp": "mlp",
    "neurons": "mlp.dense_4h_to_h",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_LLAMA = Family("model.layers", _LLAMA_PARTS)
_GEMMA = Family("model.layers", _GEMMA_PARTS)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3"], _LLAMA),
    **dict.fromkeys(["gemma2", "gemma3_text"], _GEMMA),
    "gemma3": Family("model.language_model.layers", _GEMMA_PARTS),
    "olmo2": Family("model.layers", _OLMO2_PARTS),
    "gpt2": Family("transformer.h", _GPT2_PARTS),
    "gpt_neox": Family("gpt_neox.layers", _NEOX_PARTS),
}


def family_of(model_type: str, blocks_path: str | None = None) -> Family:
    """The module paths of an architecture.

    Args:
        model_type: ``config.model_type`` of the model.
        blocks_path: dotted path of the block list; given, it stands in for an unknown architecture's, whose blocks
            must then name their parts as Llama does.

    Raises:
        ValueError: the architecture is unknown and no path was given.
    """
    if blocks_path is not None:
        return dataclasses.replace(FAMILIES.get(model_type, _LLAMA), blocks=blocks_path)
    if model_type not in FAMILIES:
        raise ValueError(
            f"model type '{model_type}' is not known (known: {', '.join(sorted(FAMILIES))}); "
            "give model.blocks_path, the dotted path of its list of decoder blocks"
        )
    return FAMILIES[model_type]


@dataclass(frozen=True)
class Blocks:
    """The decoder blocks of one loaded model."""

    modules: tuple[nn.Module, ...]
    family: Family

    @classmethod
    def of(cls, model: nn.Module, blocks_path: str | None = None) -> Blocks:
        """Find the blocks of a transformers model.

        Raises:
            ValueError: unknown architecture, or nothing at the given path.
        """
        family = family_of(model.config.model_type, blocks_path)  # pyright: ignore
        try:
            blocks = model.get_submodule(family.blocks)
        except AttributeError as error:
            raise ValueError(f"model.blocks_path: this model has no module '{family.blocks}'") from error
        return cls(tuple(blocks.children()), family)

    def module(self, site: Site) -> tuple[nn.Module, bool]:
        """The module to watch for a site, and whether to watch its input (True) or its output.

        For keys and values it is the attention, which makes and reads them inside.

        Raises:
            ValueError: the model has no such layer or stream.
        """
        if not 0 <= site.layer < len(self.modules):
            raise ValueError(f"layer must be from 0 to {len(self.modules) - 1}, got {site.layer}")
        block, stream = self.modules[site.layer], site.stream
        if stream in ("block", "block_input"):
            return block, stream == "block_input"
        part = "attention" if stream in STORED_STREAMS else stream.removesuffix("_input")
        path = self.family.parts.get(part)  # pyright: ignore[reportArgumentType]
        if path is None:
            present = ", ".join(known for known in get_args(Stream) if known not in self.family.absent)
            raise ValueError(f"stream must be one of {present}; got '{stream}'")
        return block.get_submodule(path), stream in ("heads", "neurons") or stream.endswith("_input")
