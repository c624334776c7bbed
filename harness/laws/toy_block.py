"""A block that only hands its input on, the way that either kind of model does."""

from torch import Tensor, nn


class Part(nn.Module):
    """Hands its input on, alone or as the first of a tuple."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, str]:
        """The input."""
        return (hidden_states, "weights") if self.in_tuple else hidden_states


class ToyBlock(Part):
    """A block with the parts of a Llama's."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__(in_tuple)
        self.self_attn, self.mlp = Part(in_tuple), Part(in_tuple)
        self.self_attn.o_proj, self.mlp.down_proj = Part(in_tuple), Part(in_tuple)
        self.input_layernorm, self.post_attention_layernorm = Part(in_tuple), Part(in_tuple)
