"""Weights in the layout that the CPU's matrix products like best: oneDNN's, reordered once instead of at every call.

How much faster than in torch's own layout is what (fp) against (f) shows in BENCHMARKS.md.
"""

from __future__ import annotations

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

BATCH_HINT = 64
"""Rows that oneDNN is told to expect when it chooses the layout; other numbers work too."""
MEMORY_SHARE = 0.5
"""Share of the free memory that the reordered weights may take, for a moment next to the plain ones."""
SMALLEST = 2**17
"""Weights of a layer below which the call costs more than the layout saves."""
_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Linear):
    """A linear layer that holds its weight reordered and in no other way. ``weight`` tells shape and dtype alone."""

    def __init__(self, plain: nn.Linear) -> None:
        shape = {"bias": False, "device": "meta", "dtype": plain.weight.dtype}
        super().__init__(plain.in_features, plain.out_features, **shape)
        self.weight.requires_grad_(False)
        self.bias = plain.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), BATCH_HINT)

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """The product; oneDNN's has no gradient, so where one is asked for the weight is put in order again."""
        if torch.is_grad_enabled() and input.requires_grad:
            return linear(input, self.packed.to_dense(), self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> int:
    """Hold the weights of all plain linear layers on the CPU reordered, if memory allows. They must not change later.

    Quantised layers, other devices and float64 and float16 keep what they have.

    Returns:
        How many layers were replaced.
    """
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    plain = [(parent, name, child) for parent, name, child in found if type(child) is nn.Linear and _packable(child)]
    size = sum(child.weight.nbytes for _, _, child in plain)
    if not torch.backends.mkldnn.is_available() or size > MEMORY_SHARE * psutil.virtual_memory().available:
        return 0
    for parent, name, child in plain:
        setattr(parent, name, PackedLinear(child))
    if plain:
        _leave_the_file(model)
    return len(plain)


def _leave_the_file(model: nn.Module) -> None:
    """Copy what was not packed: views of a mapped file of weights would keep all of it in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _packable(layer: nn.Linear) -> bool:
    return layer.weight.device.type == "cpu" and layer.weight.dtype in _DTYPES and layer.weight.numel() >= SMALLEST
