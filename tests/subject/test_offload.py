"""Weights of blocks that wait on disk for their turn: the same tokens, fits and gradients, and clear refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from engine_parts import FEW, decode, network_of, shifts

from harness.laws.lab import job_of
from harness.steps import subject_for
from harness.subject.architecture import architecture_of
from harness.subject.load import ModelConfig, load_model, resolve
from harness.subject.offload import check_offload, placement
from harness.subject.sampling import Sampling
from harness.types import Intervention
from harness.workbench import Request, Workbench

SMALL = ("model=tiny", "task.max_new_tokens=6", "task.limit=2", "task.dev_size=2", "task.train_size=4", "tracking=none")
TINY = ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tokens_are_the_same_in_every_family(tiny_family_config: ModelConfig, dtype: Any) -> None:
    config = dataclasses.replace(tiny_family_config, dtype=dtype)
    whole = network_of(load_model(config))
    parts = network_of(load_model(dataclasses.replace(config, offload="disk")))

    waiting = {name for name, weight in parts.model.named_parameters() if weight.is_meta}
    of_blocks = {name for name, _ in parts.model.named_parameters() if f"{parts.blocks.family.blocks}." in name}
    assert waiting == of_blocks, "blocks wait, embeddings, last norm and head do not"
    for intervention in (Intervention(), shifts(whole)):
        assert decode(parts, intervention, Sampling(10), FEW) == decode(whole, intervention, Sampling(10), FEW)


@pytest.mark.parametrize("method", ["caa", "reft_r1"])
def test_methods_fit_and_train_through_weights_that_come_and_go(method: str) -> None:
    training = ("task=sentiment", "method.training.epochs=1") if method == "reft_r1" else ()
    texts = []
    for offload in ("none", "disk"):
        overrides = (f"method={method}", "model.dtype=float64", f"model.offload={offload}", *SMALL, *training)
        job = job_of(overrides)
        bench = Workbench(subject_for(job), job.task, job.method, job.control, job.seed)
        chosen = job.method.defaults(bench.subject.layout)
        rows = [Request(item, chosen, 0) for item in job.task.examples("test")]
        bench.feed(job.task.examples("test"))
        bench.fit()
        texts.append([row.token_ids for row in bench.run(rows)])
    assert texts[0] == texts[1]


def test_what_reads_the_blocks_weights_is_refused() -> None:
    network = network_of(load_model(dataclasses.replace(TINY, offload="disk")))
    with pytest.raises(
        ValueError, match=r"the weights of attention must be read, and model\.offload leaves no weights"
    ):
        architecture_of(network).block(0)


def test_what_cannot_work_is_refused_before_anything_loads() -> None:
    with pytest.raises(ValueError, match=r"model\.offload=cpu keeps weights in main memory for a GPU"):
        resolve(dataclasses.replace(TINY, offload="cpu"))
    with pytest.raises(ValueError, match=r"model\.offload=disk works with a CPU or CUDA"):
        check_offload("disk", torch.device("mps"))
    with pytest.raises(ValueError, match=r"model\.offload=disk cannot be combined with model\.quantization"):
        dataclasses.replace(TINY, dtype="float32", offload="disk", quantization="int8")
    with pytest.raises(ValueError, match=r"model\.offload=disk cannot be combined with model\.tensor_parallel"):
        dataclasses.replace(TINY, offload="disk", tensor_parallel=2)
    with pytest.raises(ValueError, match=r"model\.offload must be one of none, cpu, disk, got 'ram'"):
        dataclasses.replace(TINY, offload="ram")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"engine\.compile=true .* cannot be combined with model\.offload=disk"):
        job_of(("method=caa", "model.offload=disk", "engine.compile=true", *SMALL))


def test_on_a_gpu_blocks_wait_in_main_memory_and_all_else_is_on_it() -> None:
    settings = resolve(TINY).settings
    placed = placement("cpu", torch.device("cuda", 1), settings, "model.layers")["device_map"]
    assert placed.pop("model.layers") == "cpu"
    assert set(placed.values()) == {"cuda:1"}
    assert {"model.embed_tokens", "model.norm", "lm_head"} <= placed.keys()


def test_records_made_so_have_a_key_of_their_own() -> None:
    plain, offloaded = (job_of(("method=caa", f"model.offload={offload}", *SMALL)) for offload in ("none", "disk"))
    assert plain.keys.generations != offloaded.keys.generations
