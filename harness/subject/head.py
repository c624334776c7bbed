"""Logits in float32 from weights in half precision.

A product that is rounded to bfloat16 leaves the two best tokens equal in one step of forty, and then a tie decides what
is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

HALF = (torch.bfloat16, torch.float16)


class Float32Head(nn.Module):
    """The product of final states with the vocabulary, which is not rounded to the weights' precision.

    A CPU gets the weights in float32, for it has no product of halves with a result in float32; CUDA has one.

    Args:
        plain: the head as it was loaded; its weights may be the embedding's too.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.product = plain
        if plain.weight.device.type == "cpu":
            # A new layer, as the embedding goes on with its own weights.
            self.product = nn.Linear(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
            self.product.weight = nn.Parameter(plain.weight.detach().float(), requires_grad=False)
            if plain.bias is not None:
                self.product.bias = nn.Parameter(plain.bias.detach().float(), requires_grad=False)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """The weights, for those who look at them."""
        return self.product.weight

    def forward(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits in float32."""
        if h.device.type != "cuda":
            own = torch.float32 if h.device.type == "cpu" else h.dtype
            return self.product(h.to(own)).float()
        logits = _Product.apply(h.flatten(0, -2), self.product.weight).unflatten(0, h.shape[:-1])
        return logits if self.product.bias is None else logits + self.product.bias.float()


class _Product(torch.autograd.Function):
    """torch's product of halves with a result in float32 comes without a gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.weight = weight
        return torch.mm(h, weight.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.to(ctx.weight.dtype) @ ctx.weight, None


def keep_logits_exact(model: Any) -> None:
    """Have a model in half precision compute its logits in float32. Quantised heads stay as they are."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype in HALF:
        model.set_output_embeddings(Float32Head(head))
