"""The parts of an executor: a job as bytes, judges counted in several processes, limits, a store at a distance."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch

from harness.build import build
from harness.config import composed
from harness.executors.executor import Here
from harness.executors.processes import Processes
from harness.executors.remote_store import RemoteStore
from harness.executors.usage import add_usages, spent, usages
from harness.executors.wire import packed, unpacked
from harness.job import Job
from harness.judges.audit import AuditedJudge
from harness.judges.match import MatchJudge
from harness.judges.openai import OpenAIJudge
from harness.records.store import GenerationStore


def job_of(*overrides: str) -> Job:
    return build(*composed(["model=tiny", "method=caa", "task.limit=3", *overrides]), overrides)


def test_a_job_arrives_as_it_was_sent_with_the_model_found_anew() -> None:
    job = job_of("search=dev_split", "side_effects=none", "executor=processes")
    arrived = unpacked(packed(job))
    assert arrived.keys == job.keys
    assert arrived.task.examples("test") == job.task.examples("test")
    assert arrived.model is not job.model
    assert arrived.scoring.find_subject() is arrived.model


def test_another_model_under_the_same_name_is_refused() -> None:
    job = job_of()
    other = dataclasses.replace(job.model, identity="tiny:other")
    with pytest.raises(RuntimeError, match=r"model tiny-llama is .*, not tiny:other"):
        unpacked(packed(dataclasses.replace(job, model=other)))


def test_a_device_of_another_kind_is_refused() -> None:
    job = job_of("model.device=cpu")
    elsewhere = dataclasses.replace(job.model, device=torch.device("cuda"))
    with pytest.raises(RuntimeError, match=r"would use cpu, not cuda"):
        unpacked(packed(dataclasses.replace(job, model=elsewhere)))


def test_an_executor_is_part_of_no_key_and_of_no_record() -> None:
    alone, together = job_of(), job_of("executor=processes")
    assert together.keys == alone.keys
    assert together.config == alone.config


def test_what_a_judge_used_elsewhere_is_counted() -> None:
    def judge() -> AuditedJudge:
        return AuditedJudge(first=MatchJudge(), second=OpenAIJudge(model="gpt-4o"))

    here, there = judge(), pickle.loads(pickle.dumps(judge()))
    before = usages(there)
    there.second.usage.calls += 3
    there.second.usage.cost = 0.25
    add_usages(here, spent(before, usages(there)))
    add_usages(here, spent(usages(there), usages(there)))
    assert (here.usage.calls, here.usage.cost) == (3, 0.25)

    there.second.usage.cost = None  # the price of a model is not known
    add_usages(here, spent(before, usages(there)))
    assert (here.usage.calls, here.usage.cost) == (6, None)


def test_a_limit_that_several_processes_cannot_keep_is_refused() -> None:
    executor = Processes(workers=2, threads=1)
    judge = OpenAIJudge(model="gpt-4o", max_calls=10)
    with pytest.raises(ValueError, match=r"judge.max_calls is counted in one process"):
        executor.check(judge)
    executor.check(OpenAIJudge(model="gpt-4o"))
    Here().check(judge)


def test_a_store_at_a_distance_does_what_the_store_itself_does() -> None:
    """Every writer of the store that a step may call goes over the wire; none of them writes where the worker is."""
    own = {name for name in vars(RemoteStore) if not name.startswith("_")}
    writers = {name for name in vars(GenerationStore) if name.startswith(("add_", "save_", "drop_"))}
    assert writers - own == {"drop_selected"}, "which only the process that holds the lock calls"
    told = []
    store = RemoteStore(Path("nowhere"), ask=lambda *question: question, tell=lambda *order: told.append(order))
    store.drop_trials({("a", 0)})
    store.save_note("equal_kl", {"factor": 1.0})
    assert told == [("drop_trials", {("a", 0)}), ("save_note", "equal_kl", {"factor": 1.0})]
    assert store.note("equal_kl") == ("note", "equal_kl")
    assert not Path("nowhere").exists()
