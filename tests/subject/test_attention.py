"""Slots, masks, sliding windows and soft caps against transformers' eager attention."""

from typing import Any

import pytest
import torch
from engine_parts import ALONE, FEW, PROMPTS, decode, greedy_by_transformers, ids, one_thread, shifts, without_cache  # noqa: F401
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.subject import tiny
from harness.subject.attention import Plan, attend
from harness.subject.load import Loaded, ModelConfig, layout_of, load_model
from harness.subject.network import Network
from harness.subject.sampling import Sampling
from harness.subject.slots import SlotCache
from harness.types import Intervention

NARROW: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 4},
}


def narrow_model(family: str, **wider: Any) -> PreTrainedModel:
    """A tiny model whose windows are shorter than the prompts and whose caps are felt, in float64."""
    options = tiny.FAMILIES[family] | NARROW[family] | wider
    config = AutoConfig.for_model(family, vocab_size=263, pad_token_id=0, **options)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.35)
    return model


@pytest.mark.parametrize("family", NARROW)
class TestWindowsAndCaps:
    @pytest.fixture
    def pair(self, family: str) -> tuple[PreTrainedModel, Network]:
        reference, model = narrow_model(family), narrow_model(family)
        reference.set_attn_implementation("eager")
        return reference, Network.of(model, layout_of(model.config), torch.device("cpu"), frozenset())

    def test_as_transformers_writes(self, pair: tuple[PreTrainedModel, Network]) -> None:
        reference, network = pair
        written = ids(decode(network, Intervention(), Sampling(16), FEW))
        assert written == [greedy_by_transformers(reference, prompt, 16) for prompt in PROMPTS]

    def test_batches_and_cache_change_nothing(self, pair: tuple[PreTrainedModel, Network]) -> None:
        network = pair[1]
        intervention = shifts(network)
        alone = decode(network, intervention, Sampling(16), ALONE)
        assert decode(network, intervention, Sampling(16), FEW) == alone
        assert decode(network, without_cache(intervention), Sampling(16)) == alone

    def test_the_window_is_felt(self, pair: tuple[PreTrainedModel, Network], family: str) -> None:
        network = pair[1]
        wide = narrow_model(family, sliding_window=500)
        other = Network.of(wide, network.layout, network.device, frozenset())
        assert ids(decode(network, Intervention(), Sampling(16))) != ids(decode(other, Intervention(), Sampling(16)))


class TestMasks:
    def test_decoding_sees_what_is_stored(self) -> None:
        mask = Plan(torch.tensor([1, 3])).decode_mask(4, None, torch.zeros(1))
        assert mask[:, 0, 0].eq(0).tolist() == [[True, False, False, False], [True, True, True, False]]

    def test_decoding_sees_no_further_than_the_window(self) -> None:
        mask = Plan(torch.tensor([2, 4])).decode_mask(4, 2, torch.zeros(1))
        assert mask[:, 0, 0].eq(0).tolist() == [[True, True, False, False], [False, False, True, True]]

    def test_prompts_see_back_to_the_window(self) -> None:
        mask = Plan().prefill_mask(3, 2, torch.zeros(1))
        assert mask[0, 0].eq(0).tolist() == [[True, False, False], [True, True, False], [False, True, True]]

    def test_computed_once_per_pass(self) -> None:
        plan = Plan(torch.tensor([1]))
        assert plan.decode_mask(2, None, torch.zeros(1)) is plan.decode_mask(2, None, torch.zeros(1))


class TestSlots:
    @pytest.fixture
    def cache(self) -> SlotCache:
        return SlotCache(num_layers=1, slots=3, capacity=6)

    def store(self, cache: SlotCache, first: int, rows: int, length: int) -> torch.Tensor:
        keys = torch.randn(rows, 2, length, 4)
        cache.expect_prompts(torch.arange(first, first + rows))
        cache.layers[0].update(keys, -keys)
        return keys

    def test_prompts_go_to_their_slots(self, cache: SlotCache) -> None:
        one, two = self.store(cache, 0, 1, 5), self.store(cache, 1, 2, 3)
        layer = cache.layers[0]
        assert torch.equal(layer.keys[:1, :, :5], one)
        assert torch.equal(layer.values[1:3, :, :3], -two)

    def test_every_row_writes_at_its_own_position(self, cache: SlotCache) -> None:
        before = self.store(cache, 0, 3, 4)
        new = torch.randn(2, 2, 1, 4)
        cache.expect_tokens(torch.arange(2), torch.tensor([4, 1]), window=5)
        keys, values = cache.layers[0].update(new, -new)
        assert keys.shape == (2, 2, 5, 4)
        assert torch.equal(keys[0, :, 4], new[0, :, 0])
        assert torch.equal(values[1, :, 1], -new[1, :, 0])
        assert torch.equal(keys[1, :, 2:4], before[1, :, 2:4])

    def test_capacity_is_known(self, cache: SlotCache) -> None:
        assert cache.layers[0].get_max_length() == 6


def test_a_model_held_by_the_harness_says_so_when_called_directly() -> None:
    loaded: Loaded = load_model(ModelConfig(kind="tiny", family="llama", device="cpu"))
    Network.of(loaded.model, loaded.layout, loaded.device, loaded.stop_ids)
    with pytest.raises(ValueError, match="held by the harness"):
        loaded.model(input_ids=torch.tensor([[1, 2]]))


def test_grouped_heads_equal_repeated_ones() -> None:
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    attended, _ = attend(torch.nn.Identity(), query, key, value, None, scaling=0.3, plan=Plan(torch.tensor([5, 3])))
    for row, length in enumerate((5, 3)):
        keys, values = (x[row, :, :length].repeat_interleave(3, 0) for x in (key, value))
        expected = torch.softmax(query[row] @ keys.transpose(1, 2) * 0.3, -1) @ values
        assert torch.allclose(attended[row].transpose(0, 1), expected, atol=1e-6)
