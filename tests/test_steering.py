"""What a pass tells an edit: chosen tokens gathered, changed and put back are those that `keep` chooses."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from harness.types import Tokens, Where

LENGTHS, PROMPTS = torch.tensor([4, 2, 3]), torch.tensor([2, 1, 3])
COLUMNS = torch.arange(5).expand(3, 5)
PASSES = {
    "left": Where(COLUMNS - (5 - LENGTHS[:, None]), COLUMNS + LENGTHS[:, None] >= 5, PROMPTS, True),
    "right": Where(COLUMNS, COLUMNS - LENGTHS[:, None] < 0, PROMPTS, True),
    "full": Where(COLUMNS, None, PROMPTS, True),
    "decode": Where(LENGTHS[:, None], None, PROMPTS, False),
}


def states_of(where: Where) -> Tensor:
    return torch.randn(*where.positions.shape, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gathered_states_and_their_rows_by_hand() -> None:
    where = PASSES["left"]  # tokens 1 to 4 of the first row are real; its prompt has two
    h = torch.arange(15.0).view(3, 5, 1)
    assert where.gather(h, "predicting").flatten().tolist() == [2, 3, 4, 8, 9, 14]
    assert where.rows("predicting").tolist() == [0, 0, 0, 1, 1, 2]
    assert where.scatter(-where.gather(h, "predicting"), h, "predicting").flatten().tolist() == [
        *(0, 1, -2, -3, -4),
        *(5, 6, 7, -8, -9),
        *(10, 11, 12, 13, -14),
    ]


@pytest.mark.parametrize("tokens", get_args(Tokens))
@pytest.mark.parametrize("name", PASSES)
def test_changing_gathered_states_is_keeping_changed_ones(name: str, tokens: Tokens) -> None:
    where, per_row = PASSES[name], torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    h = states_of(where)
    kept = h.clone()
    expected = where.keep(h * per_row[:, None, None], h, tokens)
    changed = where.gather(h, tokens) * per_row[where.rows(tokens)][:, None]
    scattered = where.scatter(changed.float(), h, tokens)
    torch.testing.assert_close(scattered, expected, rtol=1e-6, atol=1e-6)
    assert scattered.dtype == h.dtype
    assert torch.equal(h, kept)


def test_gradients_reach_the_gathered_states() -> None:
    where = PASSES["right"]
    h = states_of(where).requires_grad_()
    where.scatter(3 * where.gather(h, "prompt"), h, "prompt").sum().backward()
    mask = where.mask("prompt")
    assert mask is not None
    assert h.grad is not None
    assert torch.equal(h.grad[..., 0], torch.where(mask, 3.0, 1.0).double())
