"""Chunks of test items: which of them a restart still has to make."""

import dataclasses
from pathlib import Path

from harness.generate import _open_chunks  # pyright: ignore[reportPrivateUsage]
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
