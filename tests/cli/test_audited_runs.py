"""The second judge's grades of real runs, from the judge to the terminal, the table, the data and the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from child import Cli

from harness.commands.compare import main as compare_main
from harness.commands.score import main as score_main

SAID = {True: "CORRECT", False: "INCORRECT"}


def write_grades(path: Path, run: Path) -> None:
    """Grades for every text of a run: every other answer is right, whatever the first judge says."""
    folder = run / json.loads((run / "run.json").read_text())["generations"]
    lines = (folder / "generations.jsonl").read_text().splitlines()
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            row = json.loads(line)
            grade = {"question": row["question"], "answer": row["text"], "simpleqa": SAID[number % 2 == 0]}
            file.write(json.dumps(grade) + "\n")


@pytest.fixture
def audited(cli: Cli, tool: Cli, tmp_path: Path) -> Path:
    """A run on the tiny model, scored again with a second judge for 20 of its 40 answers."""
    done = cli("method=baseline", "task=facts", "task.limit=40", "evaluator=simpleqa_rubric", "name=plain")
    assert done.status == 0, done.err
    run = next(path.parent for path in tmp_path.rglob("run.json"))
    write_grades(tmp_path / "grades.jsonl", run)
    settings = ["judge=audited", "judge@judge.second=table", f"judge.second.path={tmp_path}/grades.jsonl"]
    again = tool(score_main, str(run), *settings, "judge.sample=20", "name=audited")
    assert again.status == 0, again.err
    return next(path.parent for path in tmp_path.rglob("run.json") if path.parent != run)


def test_the_corrected_share_is_shown_everywhere(audited: Path, tool: Cli, tmp_path: Path) -> None:
    done = tool(compare_main, str(audited), "--out", str(tmp_path / "out"))
    assert done.status == 0, done.err

    entry = json.loads((tmp_path / "out/comparison.json").read_text())["comparisons"][0]["entries"][0]
    correction = entry["corrected"]["correct"]
    assert entry["estimates"]["correct"]["value"] == 0, "the first judge finds nothing right in random words"
    assert correction["num_audited"] == 20
    assert 0.2 < correction["low"] < correction["value"] < correction["high"] < 0.8, "half of the answers are right"

    shown = f"{correction['value']:.2f} [{correction['low']:.2f}, {correction['high']:.2f}]"
    assert shown in done.out
    assert "20 units per entry were graded by table" in done.out
    assert "sampling error only: no second judge" not in done.out
    assert f"corrected {shown}" in (tmp_path / "out/report.html").read_text()

    rows = list(csv.DictReader((tmp_path / "out/comparison.csv").read_text().splitlines()))
    row = next(row for row in rows if row["metric"] == "correct")
    assert float(row["corrected_low"]) == pytest.approx(correction["low"])
    assert row["num_audited"] == "20"


def test_without_a_second_judge_the_interval_says_what_it_leaves_out(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    assert cli("method=baseline", "task=facts", "task.limit=4", "evaluator=simpleqa_rubric").status == 0
    run = next(path.parent for path in tmp_path.rglob("run.json"))
    done = tool(compare_main, str(run), "--out", str(tmp_path / "out"))
    sentence = "Intervals hold sampling error only: no second judge graded a sample."
    assert sentence in " ".join(done.out.split())
    assert sentence in (tmp_path / "out/report.html").read_text()
