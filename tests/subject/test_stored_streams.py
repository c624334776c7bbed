"""Keys and values: captures are what transformers caches, and edits change what later tokens read, nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from engine_parts import (  # noqa: F401
    ALONE,
    FEW,
    PROMPTS,
    SEEDS,
    TOGETHER,
    decode,
    ids,
    network_of,
    one_thread,
    without_cache,
)
from jaxtyping import Float
from test_attention import NARROW, narrow_model
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache

from harness.subject import graphs
from harness.subject.decode import Decoder
from harness.subject.load import ModelConfig, layout_of, load_model
from harness.subject.network import Network
from harness.subject.passes import Text, run_pass
from harness.subject.prefix import memory_of
from harness.subject.sampling import Sampling
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.types import Carry, Edit, Intervention, Site, Tokens, Where, shared
from methods.kv_cache import AddToPrompt

GREEDY = Sampling(6)
PAIRS = [prompt for prompt in PROMPTS if len(prompt) > 1]
"""Prompts with a token before their last."""


@dataclass(frozen=True, eq=False)
class Stretch(Edit):
    """``h * (1 + amount)`` on the chosen tokens, those of the completion too."""

    amount: Float[Tensor, "B"]
    tokens: Tokens = shared(default="all")

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return where.keep(h * (1 + self.amount[:, None, None].to(h)), h, self.tokens), carry


def stretched(network: Network, rows: int, first_layer: int = 0, tokens: Tokens = "all") -> Intervention:
    amount = torch.linspace(-1.5, 1.5, rows)
    layers = range(first_layer, network.layout.num_layers)
    return Intervention(
        {Site(layer, stream): Stretch(amount, tokens) for layer in layers for stream in ("keys", "values")}
    )


def network(family: str = "llama") -> Network:
    return network_of(load_model(ModelConfig(kind="tiny", family=family, device="cpu", dtype="float64")))


def patterns(layers: int, width: int) -> dict[str, Tensor]:
    """A fixed vector for each layer and stream."""
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(layers, width, generator=generator, dtype=torch.float64) for name in ("keys", "values")}


@torch.no_grad()
def by_transformers(model: torch.nn.Module, prompt: list[int], added: dict[str, Tensor], new_tokens: int) -> tuple:
    """Logits of the first token and greedy tokens, the last entry of the cache changed before the last prompt token."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    for layer, (keys, values) in enumerate(zip(added["keys"], added["values"], strict=True)):
        stored: Any = cache.layers[layer]
        stored.keys[0, :, -1] += keys.view(stored.keys.shape[1], -1)
        stored.values[0, :, -1] += values.view(stored.values.shape[1], -1)

    first, written, last = None, [], prompt[-1]
    while len(written) < new_tokens:
        logits = model(input_ids=torch.tensor([[last]]), past_key_values=cache, use_cache=True).logits[0, -1]
        first = logits if first is None else first
        last = int(logits.argmax())
        written.append(last)
    return first, tuple(written)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "qwen3"])
def test_an_edit_is_a_change_of_what_transformers_has_cached(family: str) -> None:
    config = ModelConfig(kind="tiny", family=family, device="cpu", dtype="float64")
    reference = load_model(config).model
    engine = network_of(load_model(config), stop_every=0)
    width = engine.layout.site_width(Site(0, "keys"))
    added = patterns(engine.layout.num_layers, width)
    edits = {
        Site(layer, stream): AddToPrompt(added[stream][layer].expand(len(PAIRS), -1), back=1)
        for layer in range(engine.layout.num_layers)
        for stream in ("keys", "values")
    }
    expected = [by_transformers(reference, prompt, added, GREEDY.max_new_tokens) for prompt in PAIRS]
    assert ids(decode(engine, Intervention(edits), GREEDY, FEW, PAIRS)) == [written for _, written in expected]

    with torch.no_grad():
        passed = run_pass(engine, [Text(tuple(prompt)) for prompt in PAIRS], Intervention(edits), Tally())
        assert passed.final is not None
        for row, prompt in enumerate(PAIRS):
            logits = engine.logits(passed.final[row, len(prompt) - 1])
            torch.testing.assert_close(logits, expected[row][0], rtol=0, atol=1e-5)  # transformers caps in float32
    unsteered = decode(engine, Intervention(), GREEDY, TOGETHER, PAIRS)
    assert ids(unsteered) != [written for _, written in expected]


@torch.no_grad()
def test_captures_are_what_transformers_caches() -> None:
    config = ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")
    reference, engine = load_model(config).model, network()
    cache, prompt = DynamicCache(), PROMPTS[0]
    reference(input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True)
    seen: dict[Site, Tensor] = {}
    sites = [Site(layer, stream) for layer in range(engine.layout.num_layers) for stream in ("keys", "values")]
    run_pass(engine, [Text(tuple(prompt))], Intervention(), Tally(), sites, lambda site, h, _: seen.update({site: h}))
    for site in sites:
        stored = getattr(cache.layers[site.layer], site.stream)[0]
        torch.testing.assert_close(seen[site][0], stored.transpose(0, 1).flatten(1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_token_reads_its_own_key_and_value_as_they_were() -> None:
    engine = network()
    text = Text(tuple(PROMPTS[2]))
    for stream in ("keys", "values"):
        edit = {Site(0, stream): AddToPrompt(torch.full((1, engine.layout.site_width(Site(0, stream))), 3.0), back=2)}
        plain, changed = (run_pass(engine, [text], it, Tally()).final for it in (Intervention(), Intervention(edit)))
        assert plain is not None
        assert changed is not None
        moved = (changed - plain)[0].abs().amax(-1)
        edited = len(PROMPTS[2]) - 3
        assert float(moved[: edited + 1].max()) < 1e-12
        assert float(moved[edited + 1 :].min()) > 1e-6


@pytest.mark.parametrize("tokens", ["all", "completion", "prompt"])
def test_batches_and_cache_change_nothing_where_every_token_is_edited(tokens: Tokens) -> None:
    engine = network()
    edits = stretched(engine, len(PROMPTS), tokens=tokens)
    alone = decode(engine, edits, GREEDY, ALONE)
    assert decode(engine, edits, GREEDY, FEW) == alone
    assert decode(engine, without_cache(edits), GREEDY) == alone
    assert ids(alone) != ids(decode(engine, Intervention(), GREEDY))


@pytest.mark.parametrize("family", NARROW)
def test_windows_and_caps_hold_for_what_is_stored(family: str) -> None:
    model = narrow_model(family)
    engine = Network.of(model, layout_of(model.config), torch.device("cpu"), frozenset())
    edits = stretched(engine, len(PROMPTS))
    alone = decode(engine, edits, GREEDY, ALONE)
    assert decode(engine, edits, GREEDY, FEW) == alone
    assert decode(engine, without_cache(edits), GREEDY) == alone


def test_rows_of_one_prompt_share_what_lies_below_the_edits() -> None:
    engine = network()
    prompts = [PROMPTS[2]] * 4
    edits = stretched(engine, 4, first_layer=1, tokens="prompt")
    alone = []
    for row in range(4):
        memory_of(engine).forget()
        alone += ids(decode(engine, edits.take(torch.tensor([row])), GREEDY, ALONE, prompts[:1]))
    memory_of(engine).forget()
    tally = Tally()
    assert ids(decode(engine, edits, GREEDY, TOGETHER, prompts, tally)) == alone
    assert memory_of(engine).knows(PROMPTS[2], 1)
    assert len(set(alone)) > 1


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    torch._dynamo.reset()
    counted = CompileCounter()
    monkeypatch.setattr(graphs, "compiled", partial(graphs.compiled, backend=counted))
    yield counted
    torch._dynamo.reset()


@pytest.mark.parametrize("tokens", ["all", "prompt"])
def test_graphs_write_what_plain_decoding_writes(counter: CompileCounter, tokens: Tokens) -> None:
    engine = network()
    edits = stretched(engine, len(PROMPTS), tokens=tokens)
    plain, compiled = (EngineConfig(max_rows=8, token_budget=10**6, compile=graph) for graph in (False, True))
    written = [ids(Decoder(engine, PROMPTS, edits, GREEDY, SEEDS).run(config)) for config in (plain, compiled)]
    assert written[0] == written[1]
    assert 1 <= counter.frame_count <= 2
