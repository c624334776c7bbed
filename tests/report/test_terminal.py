"""The answer in a terminal: one screen, names whole, what each method was set to."""

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from sample_runs import rewrite, write_run

from harness.report.compare import Comparison, compare
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.terminal import print_comparison

METHODS = ("caa", "diffmean", "iti", "dsas", "reft_r1", "lat", "pca", "cast", "sadi", "pid")


def runs_of(folder: Path, count: int) -> list[Path]:
    """An un-steered run, a searched one with its controls, and fixed ones: so many entries that are no control."""
    runs = [write_run(folder, "baseline", count=30)]
    for control in ("none", "shuffled", "random"):
        options = {"search": "per_prompt", "trials": 3, "oracle": True}
        runs.append(write_run(folder, "segmented", control=control, count=30, **options))
    for number, method in enumerate(METHODS[: count - 2]):
        runs.append(write_run(folder, method, strength=0.05 * (number + 1), count=30, skill=0.3 + 0.05 * number))
    return runs


def printed(comparison: Comparison, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    print_comparison(comparison, [], console)
    return console.file.getvalue().rstrip().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("entries", [4, 8, 10])
def test_the_answer_fits_one_screen(tmp_path: Path, entries: int) -> None:
    lines = printed(compare(runs_of(tmp_path, entries)), 100)
    assert len(lines) <= 25 + max(0, entries - 8)
    assert max(map(len, lines)) <= 100


def test_names_are_whole_at_eighty_columns(tmp_path: Path) -> None:
    lines = printed(compare(runs_of(tmp_path, 8)), 80)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for method in ("baseline", "segmented", *METHODS[:6]):
        assert method in text
    assert "…" not in text.replace("…;", "")


def test_what_a_method_was_set_to_stands_everywhere(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "runs", 4)
    comparison = compare(runs)
    settings = {entry.name: entry.setting for entry in comparison.entries}
    assert settings == {
        "baseline": "",
        "caa": "strength 0.05",
        "diffmean": "strength 0.1",
        "segmented": "chosen per item",
        "segmented · random": "chosen per item",
        "segmented · shuffled": "chosen per item",
    }

    assert "caa: strength 0.05; diffmean: strength 0.1" in " ".join(" ".join(printed(comparison, 100)).split())
    written = {path.name: path for path in write_report(compare_groups(runs, strict=False), tmp_path / "report")}
    rows = csv.DictReader(written["comparison.csv"].read_text().splitlines())
    assert {row["setting"] for row in rows if row["entry"] == "caa"} == {"strength 0.05"}
    (stored,) = json.loads(written["comparison.json"].read_text())["comparisons"]
    assert {entry["setting"] for entry in stored["entries"]} == set(settings.values())
    assert "<td>strength 0.05</td>" in written["report.html"].read_text()


def test_the_configured_layer_stands_beside_the_strength(tmp_path: Path) -> None:
    config = {"method": {"layer": 18}, "task": {"name": "facts"}}
    runs = [write_run(tmp_path, "baseline"), write_run(tmp_path, "caa", strength=0.15, config=config)]
    settings = [entry.setting for entry in compare(runs).entries if entry.name.startswith("caa")]
    assert settings == ["layer 18, strength 0.15"]


def test_why_a_method_was_not_tested_pushes_nothing_off_the_screen(tmp_path: Path) -> None:
    options = {"search": "per_prompt", "trials": 3, "oracle": True, "count": 30}
    runs = [write_run(tmp_path, "baseline", count=30), write_run(tmp_path, "caa", strength=0.1, count=30)]
    runs.append(write_run(tmp_path, "segmented", **options))
    for run in runs[2:]:
        rewrite(run, optimised_metrics=["correct"])
    lines = printed(compare(runs, primary="correct"), 80)
    (row,) = [line for line in lines if line.startswith(" segmented")]
    assert row.rstrip().endswith("not tested")
    assert any("gain" in line and "over" in line for line in lines), "the columns are there"
    assert "none could be tested (correct was optimised against these answers" in " ".join(lines)

    runs.append(write_run(tmp_path, "full_layer", **options))
    text = " ".join(" ".join(printed(compare(runs, primary="correct"), 80)).split())
    assert "not tested: segmented: correct was optimised against these answers, and no control did the same" in text
