"""A vector inside a model's own weights: a checkpoint that steers wherever transformers' checkpoints run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from harness.subject.load import ResolvedModel
from harness.vectors.additions import Addition


def write_checkpoint(additions: Sequence[Addition], folder: Path, model: ResolvedModel) -> None:
    """Save the model with the vectors as biases of its MLPs' output projections.

    The output of a block is its input plus attention's output plus the MLP's: a bias of the MLP's last product is added
    to every token's state behind the block. Llama's configuration knows such biases (``mlp_bias``); the MLPs' other
    biases are zero. The order of the sum differs from the harness's, so the last bits of the states may.

    Raises:
        ValueError: another architecture, another site than the outputs of blocks and MLPs, or some tokens only.
    """
    family = model.settings.get_text_config().model_type
    if family != "llama":
        raise ValueError(f"a checkpoint with its vectors inside needs Llama's mlp_bias; {family} has none")
    for addition in additions:
        if addition.site.stream not in ("block", "mlp") or addition.tokens != "all":
            raise ValueError(
                "a bias acts on all tokens, at the outputs of blocks or MLPs; this method steers "
                f"'{addition.tokens}' tokens at {addition.site}"
            )
    source = model.weights()
    config = AutoConfig.from_pretrained(source)
    if config.mlp_bias:
        raise ValueError("this model has biases of its own in its MLPs")
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, model.config.dtype))

    config.mlp_bias = True
    config.dtype = model.config.dtype
    steered = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.config.dtype))
    weights = dict(plain.state_dict())
    for name, value in steered.state_dict().items():
        if name not in weights:
            weights[name] = torch.zeros_like(value)
    for addition in additions:
        name = f"model.layers.{addition.site.layer}.mlp.down_proj.bias"
        weights[name] = weights[name] + addition.vector.to(weights[name])
    steered.load_state_dict(weights)

    steered.generation_config = plain.generation_config
    steered.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
