"""Folders that others damaged or made up: each is one listed line, and what is left is compared all the same."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import reseal, rewrite, write_run

from harness.commands.compare import main

MARKUP = "[bold red]x[/] \x1b[31m\n<script>alert(1)</script>"


def part(run: Path, name: str) -> Path:
    """A file of lines, beside the record or among the generations."""
    here = run / name
    return here if here.exists() else run / json.loads((run / "run.json").read_text())["generations"] / name


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "comparison.csv").read_text(encoding="utf-8").splitlines()))


def first_line(run: Path, name: str, change: Callable[[dict], object]) -> None:
    """Change the first line of a file and note its mark anew, as somebody would who means to deceive."""
    path = part(run, name)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] = change(rows[0])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reseal(run)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an empty record": lambda run: (run / "run.json").write_text(""),
    "bytes for a record": lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"),
    "a list for a record": lambda run: (run / "run.json").write_text("[1, 2]"),
    "a later format": lambda run: rewrite(run, format=99),
    "labels that are a number": lambda run: rewrite(run, labels=3),
    "an estimate that is a word": lambda run: rewrite(run, estimates={"correct": "high"}),
    "no scores": lambda run: (run / "scores.jsonl").unlink(),
    "half of the scores": lambda run: (run / "scores.jsonl").write_bytes((run / "scores.jsonl").read_bytes()[:900]),
    "a score that is a word": lambda run: first_line(run, "scores.jsonl", lambda row: row | {"value": "good"}),
    "a score that is no object": lambda run: first_line(run, "scores.jsonl", lambda row: [1]),
    "a score without its metric": lambda run: first_line(run, "scores.jsonl", lambda row: {"value": 1.0}),
    "no generations": lambda run: shutil.rmtree(part(run, "generations.jsonl").parent),
    "a generation that is no object": lambda run: first_line(run, "generations.jsonl", lambda row: "text"),
    "a generation without its text": lambda run: first_line(run, "generations.jsonl", lambda row: {"example_id": "q"}),
    "a text that is a number": lambda run: first_line(run, "generations.jsonl", lambda row: row | {"text": 7}),
    "a folder for generations outside": lambda run: rewrite(run, generations="../../../../../etc"),
    "configuration that is empty": lambda run: rewrite(run, config={"task": "facts", "evaluator": []}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_listed_line_and_the_others_are_compared(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("baseline", "caa", "lat"):
        write_run(tmp_path, method, count=12)
    DAMAGE[name](tmp_path / "lat-fixed-none-0")
    status = main([str(tmp_path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("not counted")]
    assert status == 1
    assert len(lines) == 1, printed
    assert "lat-fixed-none-0" in lines[0]
    kept = {row["entry"] for row in table(tmp_path / "out")}
    assert kept == {"baseline", "caa"}


def test_labels_are_text_in_the_terminal_the_table_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("baseline", "caa"):
        run = write_run(tmp_path, method, count=12)
        labels = json.loads((run / "run.json").read_text())["labels"]
        rewrite(run, labels=labels | {"method": method if method == "baseline" else f"={MARKUP}"})
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "[bold red]x[/]" in printed
    names = {row["entry"] for row in table(tmp_path / "out")}
    assert {name[:2] for name in names} == {"ba", "'="}
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text()
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {tmp_path / "out" / "figures"}
