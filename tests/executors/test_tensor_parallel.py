"""One model over two processes: the same tokens as in one process, each holding half of every layer's weights."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_executors import LONGER, has_generations, job_of, wait_until, workers_of
from transformers import AutoConfig, AutoModelForCausalLM

from harness.executors import crew
from harness.executors.processes import Processes
from harness.executors.ranks import _free_port
from harness.executors.ray_cluster import Ray
from harness.laws.tiny_concepts import concepts_folder
from harness.receipt import NotSteeredError
from harness.run import run
from harness.subject.load import ModelConfig, load_model
from harness.subject.tiny import tiny_folder

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
    for path in alone.glob("generations/*/trials.jsonl"):
        assert len(lines(together, "trials.jsonl")) == len(path.read_text().splitlines())
    for path in alone.glob("generations/*/artifact.safetensors"):
        (other,) = together.glob("generations/*/artifact.safetensors")
        fitted, shared = load_file(path), load_file(other)
        assert fitted.keys() == shared.keys()
        for name, value in fitted.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-6)


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
def test_a_network_made_of_the_models_own_layers_is_trained_and_steers_alike(tmp_path: Path) -> None:
    concepts = ("task=axbench", f"task.path={concepts_folder()}", "task.halves=both", "task.per_concept=2")
    judge = ("judge=local", "model@judge.model=tiny", "evaluator=[perplexity]")
    training = ("method.training.epochs=1", "method.training.learning_rate=0.02")
    settings = ("method=flas", "search=fixed", "task.limit=4", *concepts, *judge, *training)
    run(job_of(tmp_path / "alone", *settings))
    run(job_of(tmp_path / "together", *settings, *SHARED))
    assert_alike(tmp_path / "together", tmp_path / "alone")


def test_what_fails_in_all_processes_is_the_jobs_own_error_and_the_worker_goes_on(tmp_path: Path) -> None:
    with pytest.raises(NotSteeredError, match="made hidden states that are not numbers"):
        run(job_of(tmp_path / "failed", "method=ssv", "method.training.learning_rate=1e30", *FEW, *SHARED))
    _, record = run(job_of(tmp_path / "next", "method=caa", *FEW, *SHARED))
    assert record.status == "done"


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

rank, port = map(int, sys.argv[1:3])
ids = torch.arange(5, 17)[None]

def logits(ranks):
    config = ModelConfig(kind="hub", id=sys.argv[3], dtype=sys.argv[4], device="cpu", tensor_parallel=ranks)
    loaded = load_model(config)
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


@pytest.mark.parametrize(
    ("family", "tied", "dtype", "most"),
    [
        ("llama", False, "float64", 1e-9),
        ("llama", True, "float64", 1e-9),
        ("gemma2", True, "float64", 1e-9),
        ("llama", True, "bfloat16", 0.05),
        ("llama", False, "bfloat16", 0.05),
    ],
)
def test_each_process_holds_half_and_computes_the_whole(
    family: str, tied: bool, dtype: str, most: float, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder(family), tmp_path, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tmp_path)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    port = str(_free_port())
    command = [sys.executable, "-c", CHILD]
    others = [port, str(tmp_path), dtype]
    children = [
        subprocess.Popen([*command, str(rank), *others], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    for rank, child in enumerate(children):
        output, _ = child.communicate(timeout=240)
        assert child.returncode == 0
        own_rank, share, difference, cache, least = map(float, output.split())
        assert (own_rank, share, cache, least) == (rank, 0.5, 0.5, 5)
        assert difference < most


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.tensor_parallel=2",), "model.tensor_parallel=2 needs workers, each of them 2 processes"),
        ((*SHARED, "model.tensor_parallel=0"), "model.tensor_parallel must be at least 1, got 0"),
        ((*SHARED, "model.tensor_parallel=4"), "model.tensor_parallel=4 must divide the model's 2 key heads"),
        ((*SHARED, "model.family=gpt2"), "transformers has no plan for models of type 'gpt2'"),
        ((*SHARED, "model.dtype=float32", "model.quantization=int8"), "cannot be combined with model.tensor_parallel"),
        ((*SHARED, "method=iti"), "stream must be one that this model has"),
        ((*SHARED, "method=lora"), "stream must be one that this model has"),
        ((*SHARED, "method=austeer", "method.stream=heads"), "stream must be one that this model has"),
        ((*SHARED, "method=stars"), "stream must be one that this model has"),
        ((*SHARED, "method=kv_cache"), "stream must be one that this model has"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_weights_load(
    tmp_path: Path, overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No worker is to be started: it is the weights that take long to load, and those are loaded there.
    monkeypatch.setattr(Processes, "start", lambda *_: pytest.fail("a worker was started"))
    with pytest.raises(ValueError, match=re.escape(message)):
        run(job_of(tmp_path, "method=caa", *overrides))


SHARED_MODEL = ModelConfig(kind="tiny", family="llama", device="auto", tensor_parallel=2)


def test_gpus_must_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.workers.visible_gpus", lambda: ["0", "1"])
    with pytest.raises(ValueError, match=r"model\.tensor_parallel=2 needs executor\.gpus_per_worker=2, got 1"):
        job_of(tmp_path, "method=caa", *SHARED)
    with pytest.raises(ValueError, match=r"executor\.gpus_per_worker must be at most 2, the GPUs here, got 3"):
        job_of(tmp_path, "method=caa", "executor=processes", "executor.gpus_per_worker=3")
    assert job_of(tmp_path, "method=caa", *SHARED, "executor.gpus_per_worker=2").executor.count == 1


def test_a_machine_that_hands_out_work_may_have_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Ray(workers=1, address=None, gpus_per_worker=2, cpus_per_worker=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    resolved = executor.resolved(SHARED_MODEL)
    assert resolved.device == torch.device("cuda")
    assert "heads" in resolved.layout.absent
    with pytest.raises(ValueError, match=r"model\.device must be auto or cuda, got cuda:1"):
        executor.resolved(replace(SHARED_MODEL, device="cuda:1"))
    with pytest.raises(ValueError, match="must divide the model's 2 key heads"):
        executor.resolved(replace(SHARED_MODEL, tensor_parallel=4))


def test_a_process_by_itself_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="needs workers of 2 processes each, as executor=processes starts them"):
        load_model(replace(SHARED_MODEL, device="cpu"))
