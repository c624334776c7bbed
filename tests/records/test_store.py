"""Records on disk: whole lines or none, one writer at a time."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import zstandard

from harness.records import lines as records_lines
from harness.records.lines import DiskFullError, Lines, compress, mark_of, read_json, read_lines, write_json
from harness.records.rows import Selected, Trial
from harness.records.run import Cost, Receipt, SiteChange
from harness.records.store import GenerationStore, Work
from harness.scoring import Generation, Record
from harness.types import Example


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "new" / "a.jsonl")
    assert list(lines) == []
    lines.append([{"text": "naïve\u2028 ☃", "n": 1}, {"n": 2}])
    lines.append([])
    lines.append([{"n": 3}])
    assert [row["n"] for row in Lines(lines.path)] == [1, 2, 3]
    assert next(iter(lines))["text"] == "naïve\u2028 ☃"


@pytest.mark.parametrize("torn", [b'{"n": 3', b'{"n": 3}', b'{"t": "\xc3'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)
    lines = Lines(path)
    assert [row["n"] for row in lines] == [1, 2]
    lines.append([{"n": 4}])
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 4}\n'


def test_a_reader_never_changes_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n"')
    assert list(read_lines(path)) == [{"n": 1}]
    assert path.read_bytes() == b'{"n": 1}\n{"n"'


def test_compressed_lines_are_read_extended_and_thinned_out_as_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = Lines(path)
    lines.append({"n": n} for n in range(3))
    mark = mark_of(path)
    compress(path)
    assert os.listdir(tmp_path) == ["a.jsonl.zst"]
    assert [row["n"] for row in read_lines(path, mark)] == [0, 1, 2]

    Lines(path).append([{"n": 3}])
    assert os.listdir(tmp_path) == ["a.jsonl"]
    assert [row["n"] for row in read_lines(path)] == [0, 1, 2, 3]

    compress(path)
    Lines(path).keep(lambda row: row["n"] % 2 == 1)
    assert os.listdir(tmp_path) == ["a.jsonl"]
    assert [row["n"] for row in read_lines(path)] == [1, 3]


def test_a_kill_while_compressing_leaves_the_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Lines(path).append({"n": n} for n in range(3))
    (tmp_path / "a.jsonl.zst").write_bytes(b"half of it")
    assert [row["n"] for row in read_lines(path)] == [0, 1, 2]
    Lines(path).append([{"n": 3}])
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_changes_to_a_finished_file_are_noticed(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.jsonl"
    Lines(path).append({"n": n} for n in range(100))
    mark = mark_of(path)
    if packed:
        (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(path.read_bytes()))
        path.unlink()
        assert os.listdir(tmp_path) == ["a.jsonl.zst"]

    assert [row["n"] for row in read_lines(path, mark)] == list(range(100))
    assert mark_of(path) == mark

    shorter, other = (type(mark)(mark.lines + 1, mark.sha256), type(mark)(mark.lines, "0" * 64))
    with pytest.raises(ValueError, match="it holds 100 lines, 101 were written"):
        list(read_lines(path, shorter))
    with pytest.raises(ValueError, match="lines were changed"):
        list(read_lines(path, other))
    with pytest.raises(ValueError, match="is missing; it held 100 lines"):
        list(read_lines(tmp_path / "b.jsonl", mark))


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{oops}\n{"n": 2}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2, is damaged \(not valid JSON"):
        list(read_lines(path))
    path.write_bytes(b'{"n": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1, is damaged \(not UTF-8 text\)"):
        list(read_lines(path))


def test_what_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    deep = '{"a":' * 100_000
    (tmp_path / "a.json").write_text(deep)
    (tmp_path / "a.jsonl").write_text(deep + "\n")
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="nested too deeply"):
        list(read_lines(tmp_path / "a.jsonl"))


def test_keep_rewrites_in_one_step(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append({"n": n} for n in range(5))
    lines.keep(lambda row: row["n"] % 2 == 0)
    assert [row["n"] for row in lines] == [0, 2, 4]
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append([{"n": 1}])
    before = lines.path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(records_lines.os, "fsync", fail)
        with pytest.raises(DiskFullError, match=r"disk full while writing .*a\.jsonl"):
            lines.append([{"n": 2}])
    assert lines.path.read_bytes() == before
    lines.append([{"n": 3}])
    assert [row["n"] for row in Lines(lines.path)] == [1, 3]


def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        lines.append([{"n": 1}, {"n": float("nan")}])
    assert not lines.path.exists()


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("inf")})
    assert read_json(path) == {"a": 1}
    assert os.listdir(path.parent) == ["run.json"]


RECEIPT = Receipt(
    rows=1, sites_hit=1, sites_missed=(), kl_mean=0.1, kl_max=0.1,
    sites={"0.block": SiteChange(relative_change=0.5, tokens_prompt=1, tokens_completion=2)},
)  # fmt: skip


def generation(name: str, text: str = "") -> Generation:
    return Generation(name, {"strength": 0.5}, text, (1, 2), "stop", 7, 1, (-1.5,))


def test_the_folder_keeps_what_it_was_made_from_artifact_receipt_and_choice(tmp_path: Path) -> None:
    made_from = {"seed": 1, "method": {"strength": 0.1, "layers": [1, 2], "none": None}}
    first = GenerationStore(tmp_path)
    assert (first.meta, first.artifact, first.receipt, first.prepared, first.files) == (None, None, None, {}, {})
    first.begin(made_from)
    first.save_artifact({"v": torch.arange(6.0).view(2, 3).T})
    first.save_receipt(RECEIPT)
    first.save_prepared({"layer": 3.0})

    again = GenerationStore(tmp_path)
    again.begin({"other": True})
    assert again.meta["made_from"] == made_from
    assert torch.equal(again.artifact["v"], torch.arange(6.0).view(2, 3).T)
    assert again.receipt == RECEIPT
    assert again.prepared == {"layer": 3.0}


def test_trials_and_generations_are_read_back_as_they_were(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    store.begin({})
    example = Example("a", "Who?", "Ada", ("A. L.",), ("Bob",), group="people", metadata={"topic": "x"})
    trials = [Trial(number, number // 2, generation("a", "naïve"), 0.5, {"overlap": None}) for number in range(-1, 3)]
    store.add_trials(trials, Work("round", 10, 1.0))
    selected = Selected(Record(example, generation("a"), "Q: Who?"), 2, 0.75)
    store.add_selected([selected])

    assert list(store.trials()) == trials
    assert store.selected() == [selected]
    assert store.cost().trials == 3, "the un-steered text is no trial"

    marks = store.seal()
    assert {name: mark.lines for name, mark in marks.items()} == {"generations.jsonl": 1, "trials.jsonl": 4}
    assert GenerationStore(tmp_path).files == marks


def test_large_files_are_compressed_when_all_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.records.store.COMPRESSED_FROM_BYTES", 500)
    store = GenerationStore(tmp_path)
    store.begin({})
    trials = [Trial(number, 0, generation("a", "naïve"), 0.5, {}) for number in range(-1, 3)]
    store.add_trials(trials, Work("round", 10, 1.0))
    store.add_selected([Selected(Record(Example("a", "Who?"), generation("a"), "Q: Who?"), 2, 0.75)])
    marks = store.seal()
    assert {path.name for path in tmp_path.glob("*.jsonl*")} == {"cost.jsonl", "generations.jsonl", "trials.jsonl.zst"}

    again = GenerationStore(tmp_path)
    assert list(again.trials()) == trials
    assert again.files == marks == again.seal()


def test_trials_of_finished_examples_are_not_kept_in_memory(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    trials = [Trial(0, 0, generation(name), 0.5, {}) for name in "ab"]
    store.add_trials(trials, Work("round", 10, 1.0))
    store.add_selected([Selected(Record(Example("a", "Who?"), generation("a"), "Who?"), 0)])
    assert store.unfinished_trials == {"b": [trials[1]]}


def test_torn_rounds_are_dropped_by_example(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    trials = [Trial(number, number, generation(name), 0.5, {}) for number in range(2) for name in "ab"]
    store.add_trials(trials, Work("rounds", 10, 1.0))
    store.drop_trials({("b", 1)})
    assert list(store.trials()) == trials[:3]


def test_work_that_a_kill_had_repeated_counts_once(tmp_path: Path) -> None:
    GenerationStore(tmp_path).add_work(Work("fit", 100, 2.0, 7, examples=12))
    again = GenerationStore(tmp_path)
    again.add_work(Work("fit", 100, 3.0, 9, examples=12))
    again.add_work(Work("round 0", 50, 1.0, 8))
    expected = Cost(
        forward_tokens=150, seconds=3.0, peak_memory_bytes=8, fit_examples=12, fit_tokens=100, fit_seconds=2.0
    )
    assert again.cost() == expected


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "meta.json", {"format": 7})
    with pytest.raises(ValueError, match="generations have format 7; this version reads format 1"):
        _ = GenerationStore(tmp_path).meta


def test_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append([{"text": 'a "quoted"\nline'}])
    (line,) = lines.path.read_text().splitlines()
    assert json.loads(line) == {"text": 'a "quoted"\nline'}
