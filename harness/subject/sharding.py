"""Tensor parallelism: every layer's weights shared between the processes of one worker (``model.tensor_parallel=N``).

Each process computes some heads and some MLP neurons of all tokens, and the blocks' outputs are summed over them, so
that every process holds the whole residual stream. All of them run the same engine on the same rows. transformers
shards the weights by its own plan for the model's family; `harness.executors.ranks` keeps the processes together.
"""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import PretrainedConfig

from harness.steering import STORED_STREAMS, Layout, Stream

SHARED_OUT: frozenset[Stream] = frozenset({"heads", "neurons", *STORED_STREAMS})
"""Streams of which each process holds a part only, so that no edit can see them whole."""
_PATIENCE = timedelta(hours=2)
_WHOLE = "replicated_with_grad_allreduce"
"""transformers' name for weights that every process holds."""


def layout_of_shares(layout: Layout, settings: PretrainedConfig, ranks: int) -> Layout:
    """The layout as a method may use it where ``ranks`` processes share the weights.

    Raises:
        ValueError: the family has no plan for it, or its heads or neurons cannot be dealt out evenly.
    """
    if ranks == 1:
        return layout
    if not getattr(settings.get_text_config(), "base_model_tp_plan", None):
        raise ValueError(f"model.tensor_parallel: transformers has no plan for models of type '{settings.model_type}'")
    counts = {"heads": layout.num_heads, "key heads": layout.num_key_heads, "neurons": layout.num_neurons}
    for what, count in counts.items():
        if count and count % ranks:
            raise ValueError(f"model.tensor_parallel={ranks} must divide the model's {count} {what}")
    return dataclasses.replace(layout, absent=layout.absent | SHARED_OUT)


def check_device(device: torch.device, ranks: int) -> None:
    """Refuse devices that processes with shares of a model cannot have.

    Raises:
        ValueError: it is one GPU, or the CPU of a machine with GPUs, which transformers would use.
    """
    if ranks == 1 or (device.type == "cuda" and device.index is None):
        return
    if device.type != "cpu" or torch.cuda.is_available():
        raise ValueError(
            f"model.tensor_parallel={ranks} uses one GPU for each process: model.device must be auto or cuda, got "
            f"{device} (for the CPU of a machine with GPUs, set CUDA_VISIBLE_DEVICES= as well)"
        )


def plan_for(ranks: int, settings: PretrainedConfig, blocks: str) -> Any:
    """What transformers needs to know to load a share of the weights into each process.

    Args:
        ranks: how many processes there are.
        settings: the model's own configuration.
        blocks: dotted path of the model's list of decoder blocks.

    Raises:
        ValueError: this process does not work together with as many.
    """
    from transformers.distributed import DistributedConfig  # slow to import, and rarely needed

    together = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if together != ranks:
        raise ValueError(
            f"model.tensor_parallel={ranks} needs workers of {ranks} processes each, as executor=processes starts them "
            "for a job; a model that one process holds by itself (from Python, to score again, as a judge or a scorer "
            "of its own) must have tensor_parallel=1"
        )
    # The head stays whole: its logits then need no exchange at every step, and are the same in all processes. Where it
    # is the embedding as well, that stays whole too.
    whole = {"lm_head": _WHOLE}
    if getattr(settings.get_text_config(), "tie_word_embeddings", False):
        whole[f"{blocks.rpartition('.')[0]}.embed_tokens"] = _WHOLE
    return DistributedConfig(tp_size=ranks, tp_plan=whole)


def join(rank: int, ranks: int, port: int) -> None:
    """Make this process one of those that share a model; each uses the GPU of its own number, where there are any.

    Args:
        rank: its number, from 0.
        ranks: how many there are.
        port: where they find each other on this machine.
    """
    os.environ["LOCAL_RANK"] = str(rank)  # by which transformers chooses the GPU
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "gloo" if device is None else "nccl",
        f"tcp://127.0.0.1:{port}",
        timeout=_PATIENCE,
        rank=rank,
        world_size=ranks,
        device_id=device,
    )


def own_share(weight: Tensor) -> Tensor:
    """The part of a weight that this process holds; all of it where nothing is shared."""
    return weight.to_local() if hasattr(weight, "to_local") else weight  # pyright: ignore


def is_sharded(model: Any) -> bool:
    """Whether other processes hold parts of the model."""
    return (getattr(model, "tp_size", None) or 1) > 1


def least(value: int, device: torch.device) -> int:
    """The least of the processes' values, for what all must decide alike."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
    return int(shared)
