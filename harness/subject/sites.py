"""Where the blocks of a model live, by architecture: the only file that knows module names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.steering import Site


@dataclass(frozen=True)
class Family:
    """Dotted paths: the list of blocks inside the model, and the parts inside a block."""

    blocks: str
    attention: str = "self_attn"
    heads: str = "self_attn.o_proj"
    mlp: str = "mlp"


_LLAMA = Family("model.layers")
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2"], _LLAMA
    ),
    "gemma3": Family("model.language_model.layers"),
    "gpt2": Family("transformer.h", "attn", "attn.c_proj"),
    "gpt_neox": Family("gpt_neox.layers", "attention", "attention.dense"),
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
        known = FAMILIES.get(model_type, _LLAMA)
        return Family(blocks_path, known.attention, known.heads, known.mlp)
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
            found = model.get_submodule(family.blocks)
        except AttributeError as error:
            raise ValueError(f"model.blocks_path: this model has no module '{family.blocks}'") from error
        return cls(tuple(found.children()), family)

    def module(self, site: Site) -> tuple[nn.Module, bool]:
        """The module to watch for a site, and whether to watch its input (True) or its output.

        Raises:
            ValueError: the model has no such layer.
        """
        if not 0 <= site.layer < len(self.modules):
            raise ValueError(f"layer must be from 0 to {len(self.modules) - 1}, got {site.layer}")
        block = self.modules[site.layer]
        match site.stream:
            case "block":
                return block, False
            case "block_input":
                return block, True
            case "attention":
                return block.get_submodule(self.family.attention), False
            case "mlp":
                return block.get_submodule(self.family.mlp), False
            case "heads":
                return block.get_submodule(self.family.heads), True
        raise ValueError(f"stream must be one of block_input, block, attention, mlp, heads; got '{site.stream}'")
