"""A workbench on the tiny model, and a place to search in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_search import Marked, Watched

from harness.control import Control
from harness.records.meter import Meter
from harness.records.store import GenerationStore
from harness.search.objective import Objective, Term
from harness.search.search import Setting
from harness.subject.load import Loaded
from harness.subject.scorers import open_subject
from harness.tasks.facts import Facts
from harness.types import Evaluator, Method, Tools
from methods.fusion import FusionSteering


@pytest.fixture(scope="session", autouse=True)
def _one_thread(_threads: None) -> None:
    """Two threads on tiny tensors wait for each other more than they compute."""
    torch.set_num_threads(1)


@pytest.fixture
def task() -> Facts:
    return Facts(limit=3, dev_size=4, train_size=8, max_new_tokens=3)


@pytest.fixture
def bench(load_tiny: Callable[..., Loaded], task: Facts) -> Callable[..., Watched]:
    """Builds a workbench for a method; one strength from 0 to 1 unless another method is given."""

    def build(method: Method | None = None, control: Control | None = None, task: Facts = task) -> Watched:
        method = method or FusionSteering(segments={"all": (0.0, 1.0)}, log=False)
        bench = Watched(open_subject(load_tiny()), task, method, control or Control(), 0)
        bench.fit()
        return bench

    return build


@pytest.fixture
def setting(tmp_path: Path) -> Callable[..., Setting]:
    """Builds a setting whose store lies in the test's own folder: the same one each time."""

    def build(evaluator: Evaluator | None = None, seed: int = 0) -> Setting:
        objective = Objective(terms=(Term(evaluator=evaluator or Marked(), metric="closeness", weight=1.0),))
        store = GenerationStore(tmp_path / "store")
        return Setting(objective, Tools(), seed, store, Meter(lambda: 0), lambda count: None)

    return build
