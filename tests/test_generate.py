"""Chunks of test items: which of them a restart still has to make."""

import dataclasses
from pathlib import Path

import pytest

from harness.build import build
from harness.config import composed
from harness.generate import _chunk_size, _open_chunks  # pyright: ignore[reportPrivateUsage]
from harness.records.rows import Selected
from harness.records.store import GenerationStore, Sizes
from harness.types import Example, Generation, Record

TESTS = [Example(f"item-{number}", "why?") for number in range(7)]


def written(folder: Path, numbers: range) -> GenerationStore:
    """A store that holds the generations of these items."""
    store = GenerationStore(folder)
    store.add_selected([
        Selected(Record(TESTS[number], Generation(TESTS[number].id, {}, "so", (1,), "stop"), "why?"), 0)
        for number in numbers
    ])  # fmt: skip
    return store


def test_whole_chunks_are_left_alone(tmp_path: Path) -> None:
    store = written(tmp_path, range(6))
    assert _open_chunks(TESTS, 3, store) == [TESTS[6:]]
    assert len(store.selected()) == 6


def test_a_torn_chunk_is_dropped_whole(tmp_path: Path) -> None:
    store = written(tmp_path, range(5))
    assert _open_chunks(TESTS, 3, store) == [TESTS[3:6], TESTS[6:]]
    assert [item.record.example.id for item in store.selected()] == ["item-0", "item-1", "item-2"]


def test_sizes_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    assert store.sizes is None
    sizes = Sizes(chunk=4, max_rows=8, token_budget=800, asked_rows=None, asked_budget=None)
    store.save_sizes(sizes)
    assert GenerationStore(tmp_path).sizes == sizes != dataclasses.replace(sizes, chunk=5)


class Decides:
    """Hands that know one piece of work: to decide sizes, as a machine does that has room for chunks of 9."""

    def __init__(self, store: GenerationStore, asked_rows: int | None) -> None:
        self.store, self.asked_rows, self.done = store, asked_rows, []

    def do(self, name: str) -> None:
        self.done.append(name)
        self.store.save_sizes(Sizes(9, 3, 300, asked_rows=self.asked_rows, asked_budget=None))


@pytest.mark.parametrize(
    ("asked_rows", "chunk", "decided"),
    [(None, 4, []), (3, 9, ["decide_sizes"])],
    ids=["the same command", "another limit on the command line"],
)
def test_who_continues_keeps_the_chunks_of_the_first_start(
    tmp_path: Path, asked_rows: int | None, chunk: int, decided: list[str]
) -> None:
    """Free memory is another one by then: what decides is what was recorded, unless limits were changed by hand."""
    limits = [] if asked_rows is None else [f"engine.max_rows={asked_rows}"]
    job = build(*composed(["model=tiny", "tracking=none", "method=baseline", "search=fixed", *limits]))
    store = GenerationStore(tmp_path)
    store.save_sizes(Sizes(chunk=4, max_rows=8, token_budget=800, asked_rows=None, asked_budget=None))
    hands = Decides(store, asked_rows)
    assert _chunk_size(job, hands, store) == chunk  # pyright: ignore[reportArgumentType]
    assert hands.done == decided
