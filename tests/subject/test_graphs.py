"""Compiled decoding: the same tokens from few graphs, which are made once; nothing in them waits for the host."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from engine_parts import PROMPTS, SEEDS, network_of, one_thread, shifts  # noqa: F401
from torch._dynamo.testing import CompileCounter

from harness.subject import graphs
from harness.subject.decode import Decoder
from harness.subject.load import ModelConfig, load_model
from harness.subject.network import Network
from harness.subject.sampling import Sampling
from harness.subject.sizes import EngineConfig
from harness.types import Intervention

GREEDY = Sampling(10)
PLAIN, COMPILED = (
    EngineConfig(max_rows=8, token_budget=10**6),
    EngineConfig(max_rows=8, token_budget=10**6, compile=True),
)


@pytest.fixture
def network() -> Network:
    return network_of(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts graphs. They run as they were traced: whether they are generated code changes no count."""
    torch._dynamo.reset()
    counted = CompileCounter()
    monkeypatch.setattr(graphs, "compiled", partial(graphs.compiled, backend=counted))
    yield counted
    torch._dynamo.reset()


def tokens(network: Network, engine: EngineConfig, sampling: Sampling, edits: Intervention, late: int = 0) -> list:
    decoder = Decoder(network, PROMPTS, edits, sampling, SEEDS)
    decoder.lateness = late
    return [(row.token_ids, row.finish, row.near_ties) for row in decoder.run(engine)]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(10, temperature=1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("late", [0, 1])
def test_graphs_write_what_plain_decoding_writes(
    network: Network, counter: CompileCounter, sampling: Sampling, late: int
) -> None:
    steered = shifts(network)
    assert tokens(network, COMPILED, sampling, steered, late) == tokens(network, PLAIN, sampling, steered)
    # Tracing is refused where the host would have to wait for a value, so a graph that exists waits for none.
    assert 1 <= counter.frame_count <= 2


def test_later_rows_with_edits_of_the_same_kind_compile_nothing(network: Network, counter: CompileCounter) -> None:
    tokens(network, COMPILED, GREEDY, shifts(network))
    made = counter.frame_count
    for _ in range(2):
        tokens(network, COMPILED, GREEDY, shifts(network))
    assert counter.frame_count == made
