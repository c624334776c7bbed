"""What the tests of the engine share: rows of different lengths, edits with a memory, networks over tiny models."""

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from harness.subject.batch import Decoded
from harness.subject.decode import Decoder
from harness.subject.load import Loaded
from harness.subject.network import Network
from harness.subject.sampling import Sampling
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.types import Intervention, Site
from methods.fusion import MeanShift

LENGTHS = (5, 1, 12, 7, 3, 9, 2)
PROMPTS = [[(13 * row + 7 * at) % 240 + 20 for at in range(length)] for row, length in enumerate(LENGTHS)]
SEEDS = [100 + row for row in range(len(PROMPTS))]
TOGETHER, FEW, ALONE = EngineConfig(max_rows=64), EngineConfig(max_rows=3), EngineConfig(max_rows=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products only lose by being shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network_of(loaded: Loaded, stop_every: int = 9) -> Network:
    """The harness's network, with enough stop tokens that rows end at different times."""
    vocabulary = loaded.model.config.get_text_config().vocab_size
    stops = frozenset(range(0, vocabulary, stop_every)) if stop_every else frozenset()
    return Network.of(loaded.model, loaded.layout, loaded.device, stops)


def shifts(network: Network, rows: int = len(PROMPTS), uses_cache: bool = True) -> Intervention:
    """An edit at every block that must remember the prompt's mean, with a strength and a reference per row."""
    generator = torch.Generator().manual_seed(5)
    edits = {}
    for layer in range(network.layout.num_layers):
        reference = torch.randn(rows, network.layout.width, generator=generator, dtype=torch.float64)
        strength = torch.linspace(0.05, 0.5, rows, dtype=torch.float64)
        edits[Site(layer)] = MeanShift(reference.to(network.dtype), strength.to(network.dtype))
    return Intervention(edits, uses_cache=uses_cache)


def decode(
    network: Network,
    intervention: Intervention,
    sampling: Sampling,
    engine: EngineConfig = TOGETHER,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    tally: Tally | None = None,
) -> list[Decoded]:
    return Decoder(network, prompts, intervention, sampling, SEEDS[: len(prompts)], tally).run(engine)


def ids(rows: Sequence[Decoded]) -> list[tuple[int, ...]]:
    return [row.token_ids for row in rows]


def without_cache(intervention: Intervention) -> Intervention:
    return dataclasses.replace(intervention, uses_cache=False)


def hooks_of(network: Network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.model.modules())


@torch.no_grad()
def greedy_by_transformers(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> tuple[int, ...]:
    """What transformers' own ``generate`` writes, to the full length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    row = torch.tensor([list(prompt)])
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=new_tokens, do_sample=False)
    return tuple(out[0, len(prompt) :].tolist())
