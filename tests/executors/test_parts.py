"""The parts of an executor: a job as bytes, judges counted in several processes, limits, a store at a distance."""

import dataclasses
import pickle
import re
from pathlib import Path

import pytest

from harness.build import build
from harness.config import composed
from harness.executors.executor import Executor, Here
from harness.executors.processes import Processes
from harness.executors.ray_cluster import Ray
from harness.executors.remote_store import RemoteStore
from harness.executors.submitit_jobs import Submitit
from harness.executors.usage import add_usages, spent, usages
from harness.executors.wire import packed, unpacked
from harness.job import Job
from harness.judges.audit import AuditedJudge
from harness.judges.match import MatchJudge
from harness.judges.openai import OpenAIJudge
from harness.records.store import GenerationStore

RAY = Ray(workers=2, address=None, gpus_per_worker=1, cpus_per_worker=1)
SUBMITIT = Submitit(
    workers=2,
    cluster="slurm",
    folder="jobs",
    host_name=None,
    timeout_min=10,
    gpus_per_worker=1,
    cpus_per_worker=1,
    mem_gb=1,
)


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
    job = job_of("executor=ray", "model.device=cuda")
    assert job.model.device.type == "cuda", "the workers have it"
    with pytest.raises((RuntimeError, ValueError), match="cuda"):
        unpacked(packed(job_of("executor=ray", "model.device=auto")))


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


@pytest.mark.parametrize("executor", [Processes(workers=2, threads=1), RAY, SUBMITIT])
def test_a_limit_that_several_processes_cannot_keep_is_refused(executor: Executor) -> None:
    judge = OpenAIJudge(model="gpt-4o", max_calls=10)
    with pytest.raises(ValueError, match=r"judge.max_calls is counted in one process"):
        executor.check(judge)
    executor.check(OpenAIJudge(model="gpt-4o"))
    Here().check(judge)


@pytest.mark.parametrize(("executor", "extra"), [(RAY, "ray"), (SUBMITIT, "slurm")])
def test_a_package_that_is_missing_is_named(executor: Executor, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape(f"pip install 'steering-harness[{extra}]'")):
        executor.check()


@pytest.mark.parametrize(
    ("executor", "field", "value"),
    [
        (RAY, "workers", 0),
        (RAY, "gpus_per_worker", -1),
        (SUBMITIT, "workers", 0),
        (SUBMITIT, "timeout_min", 0),
        (SUBMITIT, "mem_gb", 0),
    ],
)
def test_counts_that_start_nothing_are_refused(executor: Executor, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"executor\.{field} must be .*, got {value}"):
        dataclasses.replace(executor, **{field: value})


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
