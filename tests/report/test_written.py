"""Files and tables of a comparison: JSON, CSV, published values, the command, the page without a browser."""

import base64
import csv
import hashlib
import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plotly.graph_objects as go
import pytest
import yaml
from sample_runs import reseal, rewrite, write_run, write_sweep

from harness.commands.compare import main
from harness.records.lines import DiskFullError
from harness.records.rows import Trial, trial_row
from harness.records.stored import read_run
from harness.report.compare import Comparison, compare
from harness.report.curves import front, is_degenerate, search_curve, strength_curves
from harness.report.expect import check_expectations, held_against, read_expectations
from harness.report.figures import figures
from harness.report.files import finite, write_report
from harness.report.groups import compare_groups
from harness.report.html import embedded_json, render
from harness.scoring import Generation

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    write_sweep(directory, count=20, text=lambda index, text: HOSTILE + text if index == 3 else text)
    write_run(directory, "lat", status="failed", error="RuntimeError: disk full")
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    write_run(directory, "baseline", count=20)
    for control in ("none", "shuffled"):
        write_run(directory, "segmented", search="per_prompt", control=control, count=20, trials=4, oracle=True)
    write_run(directory, "lat", status="failed", error="RuntimeError: disk full")
    return directory


@pytest.fixture(scope="module")
def comparison(sweep: Path) -> Comparison:
    return compare(sorted(file.parent for file in sweep.glob("*/run.json")))


def test_a_sweep_writes_its_files_although_a_job_failed(small: Path, tmp_path: Path) -> None:
    runs = sorted(file.parent for file in small.glob("*/run.json"))
    written = write_report(compare_groups(runs, strict=False), tmp_path)
    assert [path.name for path in written[:3]] == ["comparison.json", "comparison.csv", "report.html"]
    assert {path.parent.name for path in written[3:]} == {"figures"}
    comparison_read = json.loads(written[0].read_text())["comparisons"][0]
    assert [item["reason"] for item in comparison_read["failures"]] == ["failed: RuntimeError: disk full"]
    assert {entry["name"]: entry["oracle"] for entry in comparison_read["entries"]}["segmented"] is True
    contrast = next(c for c in comparison_read["contrasts"] if (c["ours"], c["theirs"]) == ("segmented", "baseline"))
    assert len(contrast["difference"]["gained"]) + len(contrast["difference"]["lost"]) <= 20


@contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """Writing beyond that fails, as it does on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("failing", ["comparison.json", "report.html"])
def test_a_full_disk_leaves_the_earlier_report_as_it_was(small: Path, tmp_path: Path, failing: str) -> None:
    comparisons = compare_groups([small], strict=False)
    files = write_report(comparisons, tmp_path)[:3]
    before = {path.name: path.read_bytes() for path in files}
    limit = 100 if failing == "comparison.json" else len(before["comparison.json"]) + 1
    assert limit < len(before[failing])

    with no_file_larger_than(limit), pytest.raises(DiskFullError, match=f"disk full while writing .*{failing}"):
        write_report(comparisons, tmp_path)
    assert {path.name: path.read_bytes() for path in files} == before
    assert not list(tmp_path.glob(".*")), "no drafts are left"


def test_the_csv_has_one_row_per_entry_and_metric(small: Path, tmp_path: Path) -> None:
    assert main([str(small), "--out", str(tmp_path)]) == 1, "a failed run shows in the exit status"
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert len({(row["entry"], row["metric"]) for row in rows}) == len(rows) == 3 * 6
    marked = {row["entry"] for row in rows if row["optimised_against_gold"] == "True"}
    assert marked == {"segmented", "segmented · shuffled"}


def test_infinite_bounds_become_null() -> None:
    assert finite({"a": [float("inf"), 1.0], "b": (float("nan"),)}) == {"a": [None, 1.0], "b": [None]}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    claims = {
        "segmented": {
            "correct": {"value": 0.6, "tolerance": 0.3, "source": "Table 2"},
            "f1": {"value": 0.9, "tolerance": 0.1, "source": "Table 2"},
            "sparkle": {"value": 0.1, "tolerance": 0.1, "source": "Table 3"},
        },
        "lat": {"correct": {"value": 0.1, "tolerance": 0.1, "source": "Table 4"}},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text("# @package _global_\n" + yaml.safe_dump({"expect": claims}))
    return path


def test_published_values_are_held_against_ours(comparison: Comparison, experiment: Path) -> None:
    claims = {(c.label, c.metric): c for c in held_against(comparison, read_expectations(experiment))}
    assert claims["segmented", "correct"].verdict == "inside"
    assert claims["segmented", "f1"].verdict == "outside"
    assert claims["segmented", "f1"].ours == pytest.approx(0.31)
    assert claims["segmented", "sparkle"].note == "segmented has no metric sparkle"
    assert claims["lat", "correct"].verdict == "missing"
    assert "no such run; there are" in claims["lat", "correct"].note


@pytest.mark.parametrize("content", ["a: 1\n", "expect: {}\n", "expect: {x: {y: {value: 1}}}\n"])
def test_claims_must_be_complete(tmp_path: Path, content: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"no `expect:` node|lacks source, tolerance"):
        read_expectations(path)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (0.0154, r"a random model's 0\.0154 lies inside 0\.035 ± 0\.03"),
        (0.065, r"a random model's 0\.065 lies inside"),
        ("few", r"random_model must be a number, got 'few'"),
    ],
)
def test_a_claim_that_a_random_model_meets_is_refused(level: float | str, message: str) -> None:
    claim = {"value": 0.035, "tolerance": 0.03, "source": "Table 1", "random_model": level}
    with pytest.raises(ValueError, match=message):
        check_expectations({"baseline": {"accurate": claim}}, "expect")


def test_a_claim_without_a_random_model_is_marked(comparison: Comparison) -> None:
    stated = {"value": 0.5, "tolerance": 0.1, "source": "Table 1"}
    claims = {"segmented": {"correct": stated}}
    (marked,) = held_against(comparison, check_expectations(claims, "expect"))
    assert marked.source == "Table 1; a random model's value is not stated"
    (known,) = held_against(
        comparison, check_expectations({"segmented": {"correct": {**stated, "random_model": 0.0}}}, "expect")
    )
    assert known.source == "Table 1"


def test_the_command_prints_tables_and_paths(small: Path, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(small), "--out", str(experiment.parent), "--expect", str(experiment), "--explain"]
    assert main(command) == 1

    printed = capsys.readouterr().out
    for text in (
        "Deployable",
        "Oracle",
        "claims in correct",
        "Published values",
        "inside",
        "outside",
        "report.html",
    ):
        assert text in printed
    assert "not counted" in printed


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "baseline", count=5), write_run(tmp_path, "prompting", count=6)]
    command = [sys.executable, "-m", "harness.compare", *map(str, runs), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("compare: different examples: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_every_figure_is_valid_plotly(comparison: Comparison) -> None:
    sections = figures(comparison)
    assert set(sections) == {"forest", "differences", "strengths", "pareto", "trials", "chosen", "breakdown"}
    for section in sections.values():
        for figure in section:
            go.Figure(data=figure["data"], layout=figure["layout"])


def test_text_in_figures_is_escaped(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "baseline"), write_run(tmp_path, "prompting")]
    labels = json.loads((runs[1] / "run.json").read_text())["labels"]
    rewrite(runs[1], labels=labels | {"method": "<b>x</b>"})
    drawn = json.dumps(figures(compare(runs)))
    assert "<b>x" not in drawn
    assert "&lt;b&gt;x" in drawn


def test_strengths_make_a_curve(comparison: Comparison) -> None:
    (curve,) = strength_curves(comparison.entries)
    assert (curve.method, curve.setting) == ("caa", "strength")
    assert [strength for strength, _ in curve.points] == [0.5, 1.0, 2.0, 4.0]


def trial(example: str, number: int, objective: float, parameters: dict) -> Trial:
    return Trial(number, number, Generation(example, parameters, "", (), "stop"), objective, {})


def searched(run: Path, trials: list[Trial]) -> Comparison:
    path = read_run(run).generations_folder / "trials.jsonl"
    path.write_text("".join(json.dumps(trial_row(item)) + "\n" for item in trials))
    reseal(run)
    return compare([run])


def test_a_search_per_example_keeps_each_examples_best(tmp_path: Path) -> None:
    run = write_run(tmp_path, "segmented", search="per_prompt", trials=2, count=2, oracle=True)
    rows = [trial("q000", -1, 0.1, {}), trial("q001", -1, 0.3, {})]
    rows += [trial("q000", 0, 0.5, {"k": 1.0}), trial("q001", 0, 0.2, {"k": 2.0})]
    curve = search_curve(searched(run, rows).entries[0])
    assert curve is not None
    assert (curve.start, curve.mean) == (0, (pytest.approx(0.2), pytest.approx(0.4)))


def test_a_search_for_all_examples_keeps_the_best_mean(tmp_path: Path) -> None:
    run = write_run(tmp_path, "segmented", search="dev_split", trials=2, count=2)
    tried = [(0, {"k": 1.0}, (0.4, 0.4)), (1, {"k": 2.0}, (0.9, 0.0)), (2, {"k": 3.0}, (0.1, 0.9))]
    rows = [trial(f"q00{i}", number, values[i], k) for number, k, values in tried for i in range(2)]
    curve = search_curve(searched(run, rows).entries[0])
    assert curve is not None
    assert (curve.start, curve.mean) == (1, tuple(map(pytest.approx, (0.4, 0.45, 0.5))))


def test_samples_without_parameters_are_a_search_for_each_example(tmp_path: Path) -> None:
    run = write_run(tmp_path, "baseline", search="per_prompt", control="best_of_n", trials=2, count=2)
    rows = [trial(f"q00{i}", number, (0.4, 0.9, 0.1)[(number + i) % 3], {}) for number in range(2) for i in range(2)]
    curve = search_curve(searched(run, rows).entries[0])
    assert curve is not None
    assert curve.mean == (pytest.approx(0.65), pytest.approx(0.9))


def test_fronts_and_loops_by_hand() -> None:
    assert front([(1, 0.2, "a"), (2, 0.1, "b"), (3, 0.5, "c"), (3, 0.4, "d")]) == [(1, 0.2, "a"), (3, 0.5, "c")]
    assert is_degenerate("  ")
    assert is_degenerate("yes it is " * 10)
    assert not is_degenerate("no no no")
    assert not is_degenerate("Paris is the capital of France and lies on the river Seine.")


def test_embedded_json_cannot_leave_its_element() -> None:
    written = embedded_json({"text": HOSTILE})
    assert not re.search(r"[<>&\u2028\u2029]", written)
    assert json.loads(written) == {"text": HOSTILE}


def test_the_page_is_one_file_that_allows_its_own_scripts_only(comparison: Comparison) -> None:
    page = render([comparison], [()], [figures(comparison)])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    assert "default-src 'none'" in allowed

    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2, "plotly and the page's own"
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed
    assert "unsafe-inline" not in allowed.split("script-src")[1].split(";")[0]
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page.replace(scripts[0], ""))
    assert "document.title" not in page.replace("document.title=&#39;", "").replace(HOSTILE, "").split("<body>")[0]


def test_the_page_says_what_the_files_say(comparison: Comparison) -> None:
    page = render([comparison], [held_against(comparison, {})], [figures(comparison)])
    for text in ("In words", "Deployable", "Oracle", "Proof of steering", "Not counted", "disk full"):
        assert text in page
    assert "python -m harness method=segmented search=per_prompt control=shuffled" in page


def test_a_page_without_any_result_still_opens(tmp_path: Path) -> None:
    run = write_run(tmp_path, "caa", status="failed", error="<b>no</b> memory")
    page = write_report(compare_groups([run], strict=False), tmp_path / "out")[2].read_text()
    assert "&lt;b&gt;no&lt;/b&gt; memory" in page
