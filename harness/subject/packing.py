"""Weights in the layout that the CPU's matrix products like best: oneDNN's, reordered once instead of at every call.

How much faster than in torch's own layout is what (fp) against (f) shows in BENCHMARKS.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.subject.memory import available_memory

if TYPE_CHECKING:
    from jaxtyping import Float

BATCH_HINT = 64
"""Rows that oneDNN is told to expect when it chooses the layout; other numbers work too."""
MEMORY_SHARE = 0.5
"""Share of the free memory that the reordered weights may take, for a moment next to the plain ones."""
SMALLEST = 2**17
"""Weights of a layer below which the call costs more than the layout saves."""


class PackedLinear(nn.Linear):
    """A linear layer that holds its weight reordered and in no other way; ``weight`` is an ordered copy."""

    bias: nn.Parameter | None

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_parameter("bias", plain.bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), BATCH_HINT)

    @property
    def weight(self) -> Float[Tensor, "O I"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The exact weight, a new tensor at every call."""
        return self.packed.to_dense()

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """The product, with gradients of the input where they are asked for."""
        if torch.is_grad_enabled() and input.requires_grad:
            return _Product.apply(input, self.packed, self.bias)
        return _product(input, self.packed, self.bias)


def _product(input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """oneDNN's product has no gradient, and torch's would keep an ordered weight alive for every call."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.packed = packed
        return _product(input, packed, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.packed.to_dense(), None, None


def pack_linears(model: nn.Module) -> int:
    """Hold the weights of all plain linear layers on the CPU reordered, if memory allows. They must not change later.

    Quantised layers, other devices and float64 and float16 keep what they have. A weight that the embedding shares is
    held by both.

    Returns:
        How many layers were replaced.
    """
    linears = [
        (parent, name) for parent in model.modules() for name, child in parent.named_children() if _packable(child)
    ]
    size = sum(getattr(parent, name).weight.nbytes for parent, name in linears)
    if not linears or size > MEMORY_SHARE * available_memory():
        return 0
    for parent, name in linears:
        setattr(parent, name, PackedLinear(getattr(parent, name)))
    _leave_the_file(model)
    return len(linears)


def _leave_the_file(model: nn.Module) -> None:
    """Copy what was not packed: views of a mapped file of weights would keep all of it in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _packable(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu" or layer.weight.numel() < SMALLEST:
        return False
    if layer.weight.dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and layer.weight.dtype == torch.float32
