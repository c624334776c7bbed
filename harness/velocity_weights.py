"""Where a velocity field's weights come from: a start from the steered layer, or a checkpoint of FLAS's authors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.attention_blocks import Weights
from harness.json_text import parsed_object
from harness.model_view import Architecture
from harness.subject.hub import hub_folder, local_folder
from harness.velocity import TIME_FEATURES, FieldShape, VelocityField

FIRST_GATE = 0.1
"""What every gate starts at."""
UNTOLD = {"layer": 20, "n_steps": 2}
"""What the authors' loader takes where no ``config.json`` says it; their training takes 3 steps."""


def first_weights(architecture: Architecture, layer: int, shape: FieldShape, seed: int) -> dict[str, Tensor]:
    """Weights to start training from: MLP, self-attention and their norms are the steered layer's, the rest is new.

    Norms that the layer does not have (Llama's behind its parts) start without effect, and so does the time.
    """
    base, generator = architecture.block(layer), torch.Generator().manual_seed(seed)
    width = len(architecture.final_norm)
    weights = {
        "time_embed.mlp.0.weight": _drawn((width, TIME_FEATURES), TIME_FEATURES, generator),
        "time_embed.mlp.0.bias": _drawn((width,), TIME_FEATURES, generator),
        "time_embed.mlp.2.weight": torch.zeros(width, width),
        "time_embed.mlp.2.bias": torch.zeros(width),
    }
    for number in range(shape.num_blocks):
        block = _reading(architecture, generator) | _mlp(architecture, base)
        if shape.self_attention:
            block |= _looking_back(architecture, base)
        weights |= {f"blocks.{number}.{name}": value for name, value in block.items()}
    return {name: value.to(architecture.final_norm.device) for name, value in weights.items()}


def _reading(architecture: Architecture, generator: torch.Generator) -> dict[str, Tensor]:
    """Cross-attention, which no language model has to start from."""
    width, head = len(architecture.final_norm), architecture.head_width
    queries, keys = architecture.num_heads * head, architecture.num_key_heads * head
    sizes = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries)}
    drawn = {f"cross_attn.{name}.weight": _drawn(size, size[1], generator) for name, size in sizes.items()}
    return drawn | {
        "cross_attn.q_norm.weight": _neutral(architecture, head),
        "cross_attn.k_norm.weight": _neutral(architecture, head),
        "pre_cross_norm.weight": _neutral(architecture, width),
        "post_cross_norm.weight": _neutral(architecture, width),
        "cross_gate": torch.full((width,), FIRST_GATE),
    }


def _looking_back(architecture: Architecture, base: Weights) -> dict[str, Tensor]:
    width = len(architecture.final_norm)
    copied = {
        name.replace("attention.", "self_attn."): value.clone()
        for name, value in base.items()
        if name.startswith("attention.")
    }
    return copied | {
        "pre_sa_norm.weight": base["attention_norm.weight"].clone(),
        "post_sa_norm.weight": base.get("attention_post_norm.weight", _neutral(architecture, width)).clone(),
        "self_attn_gate": torch.full((width,), FIRST_GATE),
    }


def _mlp(architecture: Architecture, base: Weights) -> dict[str, Tensor]:
    width = len(architecture.final_norm)
    copied = {name.removeprefix("mlp."): value.clone() for name, value in base.items() if name.startswith("mlp.")}
    return copied | {
        "pre_mlp_norm.weight": base["mlp_norm.weight"].clone(),
        "post_mlp_norm.weight": base.get("mlp_post_norm.weight", _neutral(architecture, width)).clone(),
        "mlp_gate": torch.full((width,), FIRST_GATE),
    }


def _neutral(architecture: Architecture, width: int) -> Tensor:
    """The weight of a norm that scales nothing."""
    return torch.full((width,), 1 - architecture.norm_offset)


def _drawn(size: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform within one over the root of the inputs, as torch starts linear layers."""
    return (2 * torch.rand(size, generator=generator) - 1) / fan_in**0.5


@dataclass(frozen=True)
class Checkpoint:
    """A field that somebody trained.

    Args:
        field: the network, in the dtype it was saved in.
        layer: that it steers.
        num_steps: Euler steps that it was trained with.
    """

    field: VelocityField
    layer: int
    num_steps: int


def read_checkpoint(name: str, architecture: Architecture) -> Checkpoint:
    """A field as FLAS's authors publish it: safetensors (or a ``.pt`` of their training) beside ``config.json``.

    Args:
        name: the file, a folder with it, or ``OWNER/NAME`` on the hub.
        architecture: of the model that it was trained for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a part of the network is missing, of another size, or switched off in a way that is not supported.
    """
    file, *beside = checkpoint_files(name) or _files_of(hub_folder(name, None, weights=True, code=False)[0])
    settings = parsed_object(beside[0].read_text("utf-8"), str(beside[0])) if beside else {}
    for part in ("disable_cross_attn", "disable_mlp"):
        if settings.get(part):
            raise ValueError(f"{file}: fields trained with {part} are not supported")

    weights = _tensors(file)
    numbers = {int(block[1]) for key in weights if (block := re.match(r"blocks\.(\d+)\.", key))}
    looks_back = "blocks.0.self_attn_gate" in weights and not settings.get("disable_self_attn", False)
    shape = FieldShape.of(architecture, len(numbers), looks_back)
    expected = first_weights(architecture, 0, shape, seed=0)  # any layer's sizes will do
    _check(weights, expected, file)

    device = architecture.final_norm.device
    # A field without self-attention may have kept the weights of one that it never used.
    used = {key: weights[key].to(device) for key in expected}
    field = VelocityField(used, architecture.frequencies, shape)
    told = UNTOLD | {key: settings[key] for key in UNTOLD if key in settings}
    return Checkpoint(field, int(told["layer"]), int(told["n_steps"]))


def checkpoint_files(name: str) -> tuple[Path, ...]:
    """The weights of a checkpoint on this machine, and its ``config.json`` if it has one; nothing for one on the hub.

    Raises:
        FileNotFoundError: it reads like a file or a folder, and there is none.
        ValueError: the folder does not hold one safetensors file.
    """
    path = Path(name).expanduser()
    if path.suffix in (".safetensors", ".pt"):
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint at {path}")
        return _with_settings(path)
    folder = local_folder(name)
    return () if folder is None else _files_of(folder)


def _files_of(folder: Path) -> tuple[Path, ...]:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{folder} must hold one safetensors file, got {len(files)}; give the file itself")
    return _with_settings(files[0])


def _with_settings(file: Path) -> tuple[Path, ...]:
    beside = file.with_name("config.json")
    return (file, beside) if beside.exists() else (file,)


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if "concept_enc" in content:
        raise ValueError(f"{file} brings a concept encoder of its own, which is not supported: theirs is frozen")
    return content.get("flow_fn", content)


def _check(weights: Weights, expected: Weights, file: Path) -> None:
    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"{file} lacks {len(missing)} tensors of the field, {missing[0]} among them")
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            shapes = f"{list(value.shape)}, got {list(weights[key].shape)}"
            raise ValueError(f"{file}: {key} must have the shape {shapes}; is it a checkpoint for this model?")
