"""Models larger than the device: weights of decoder blocks wait elsewhere for their turn (``model.offload``).

transformers and accelerate place the weights and bring each layer's to the device for its own product; embeddings,
norms and the head stay on the device. Everything else of the engine is as always, so that tokens are the same, at a
speed that reading the weights anew for each step leaves: for trying a method on a model that does not fit.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

Offload = Literal["none", "cpu", "disk"]


def check_offload(offload: Offload, device: torch.device) -> None:
    """Refuse what would move nothing, or cannot.

    Raises:
        ValueError: weights are to wait in the memory of the very device that computes, or the device is not one that
            accelerate brings weights to.
    """
    if offload == "cpu" and device.type == "cpu":
        raise ValueError(
            "model.offload=cpu keeps weights in main memory for a GPU, and this model runs on the CPU: use "
            "model.offload=disk, or none"
        )
    if offload != "none" and device.type not in ("cpu", "cuda"):
        raise ValueError(f"model.offload={offload} works with a CPU or CUDA, got model.device={device}")


def placement(
    offload: Offload, device: torch.device, settings: PretrainedConfig, blocks: str, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Options of ``from_pretrained`` that put the blocks' weights elsewhere and all others on the device.

    Args:
        offload: where the blocks' weights wait, "cpu" or "disk"; from disk they are read where they already lie.
        device: what computes.
        settings: the model's own configuration.
        blocks: dotted path of the model's list of decoder blocks.
        trust_remote_code: as in `ModelConfig`.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    outside = [
        name
        for name, module in empty.named_modules()
        if not any(module.children()) and not f"{name}.".startswith(f"{blocks}.")
    ]
    return {"device_map": {blocks: offload} | dict.fromkeys(outside, str(device))}


def refuse_absent(weights: torch.Tensor, what: str) -> None:
    """Refuse weights that wait elsewhere, for whoever must read them and not only multiply with them.

    Raises:
        ValueError: they are not there.
    """
    if weights.is_meta:
        raise ValueError(f"{what} must be read, and model.offload leaves no weights of blocks in place: use none")
