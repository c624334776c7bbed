"""One model over two processes: the same tokens as in one process, each holding half of every layer's weights."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_executors import LONGER, has_generations, job_of, wait_until, workers_of

from harness.executors import crew
from harness.run import run

SHARED = ("executor=processes", "executor.workers=1", "executor.threads=1", "model.tensor_parallel=2")
FEW = (
    *("task.limit=4", "search=dev_split"),
    *("search.num_trials=2", "search.trials_per_round=2", "search.startup_trials=1"),
)


@pytest.fixture(scope="module", autouse=True)
def _no_worker_stays() -> Iterator[None]:
    yield
    crew.dismiss_crews()


def lines(out: Path, name: str) -> list[dict]:
    (path,) = out.glob(f"generations/*/{name}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(out: Path) -> list[tuple[str, list[int], dict]]:
    """What was written for each test item, and with which parameters."""
    records = lines(out, "generations.jsonl")
    return [(one["example_id"], one["token_ids"], one["parameters"]) for one in records]


def assert_alike(together: Path, alone: Path) -> None:
    assert written(together) == written(alone)
    assert len(lines(together, "trials.jsonl")) == len(lines(alone, "trials.jsonl"))
    for path in alone.glob("generations/*/artifact.safetensors"):
        (other,) = together.glob("generations/*/artifact.safetensors")
        fitted, shared = load_file(path), load_file(other)
        assert fitted.keys() == shared.keys()
        for name, value in fitted.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen2", "qwen3", "gemma2"))],
)
def test_two_processes_write_what_one_writes(family: str, tmp_path: Path) -> None:
    settings = ("method=caa", f"model.family={family}", *FEW)
    _, alone = run(job_of(tmp_path / "alone", *settings))
    _, together = run(job_of(tmp_path / "together", *settings, *SHARED))
    assert_alike(tmp_path / "together", tmp_path / "alone")
    assert together.key != alone.key, "sums in another order are other results"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("method=diffmean", "method.stream=mlp"),
        ("method=diffmean", "method.stream=attention"),
        ("method=mean_act", "task=sentiment", "evaluator=[sentiment]"),
        ("method=ssv", "method.training.epochs=2"),
    ],
    ids=lambda settings: "-".join(settings[:2]),
)
def test_every_stream_that_is_whole_is_steered_alike(settings: tuple[str, ...], tmp_path: Path) -> None:
    run(job_of(tmp_path / "alone", *FEW, *settings))
    run(job_of(tmp_path / "together", *FEW, *settings, *SHARED))
    assert_alike(tmp_path / "together", tmp_path / "alone")


@pytest.mark.slow
def test_when_one_of_the_processes_is_killed_both_begin_again(tmp_path: Path) -> None:
    run(job_of(tmp_path / "alone", *LONGER))
    crew.dismiss_crews()
    killed: list[int] = []

    def kill_the_second() -> None:
        wait_until(lambda: has_generations(tmp_path / "together"))
        (worker,) = workers_of(psutil.Process())
        (second,) = worker.children()
        killed.append(worker.pid)
        second.kill()

    killer = threading.Thread(target=kill_the_second, daemon=True)
    killer.start()
    run(job_of(tmp_path / "together", *LONGER, *SHARED))
    killer.join()

    (worker,) = workers_of(psutil.Process())
    assert [worker.pid] != killed
    assert_alike(tmp_path / "together", tmp_path / "alone")


CHILD = """
import sys, torch
from harness.subject import sharding
from harness.subject.load import ModelConfig, load_model
from harness.subject.network import Network

rank, port = map(int, sys.argv[1:])
ids = torch.arange(5, 17)[None]

def logits(ranks):
    loaded = load_model(ModelConfig(kind="tiny", family="llama", dtype="float64", device="cpu", tensor_parallel=ranks))
    network = Network.of(loaded.model, loaded.layout, loaded.device, loaded.stop_ids)
    with torch.no_grad():
        states = loaded.model.base_model(input_ids=ids, use_cache=False, plan=plan()).last_hidden_state
        return loaded.model, network, network.logits(states)

def plan():
    from harness.subject.attention import Plan
    return Plan()

_, whole, expected = logits(1)
sharding.join(rank, 2, port)
model, network, shared = logits(2)
query = model.model.layers[0].self_attn.q_proj.weight
print(rank, sharding.own_share(query).numel() / query.numel(), float((shared - expected).abs().max()),
      network.cache_bytes_per_token() / whole.cache_bytes_per_token(), sharding.least(5 + rank, network.device))
torch.distributed.destroy_process_group()
"""


def test_each_process_holds_half_and_computes_the_whole() -> None:
    from harness.executors.ranks import _free_port

    port = str(_free_port())
    command = [sys.executable, "-W", "error::UserWarning:harness", "-c", CHILD]
    children = [subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    for rank, child in enumerate(children):
        output, _ = child.communicate(timeout=240)
        assert child.returncode == 0
        own_rank, share, difference, cache, least = map(float, output.split())
        assert (own_rank, share, cache, least) == (rank, 0.5, 0.5, 5)
        assert difference < 1e-9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.tensor_parallel=2",), "model.tensor_parallel=2 needs workers, each of them 2 processes"),
        ((*SHARED, "model.tensor_parallel=0"), "model.tensor_parallel must be at least 1, got 0"),
        ((*SHARED, "model.tensor_parallel=4"), "model.tensor_parallel=4 must divide the model's 2 key heads"),
        ((*SHARED, "model.family=gpt2"), "transformers has no plan for models of type 'gpt2'"),
        ((*SHARED, "model.dtype=float32", "model.quantization=int8"), "cannot be combined with model.tensor_parallel"),
        ((*SHARED, "model.device=mps"), "model.device"),
        ((*SHARED, "method=iti"), "stream"),
        ((*SHARED, "method=kv_cache"), "stream"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_weights_load(
    tmp_path: Path, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.steps.load_model", lambda model: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=re.escape(message)):
        run(job_of(tmp_path, "method=caa", *overrides))
