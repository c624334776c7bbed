"""Other harnesses' scores, item by item, in our paired report: lm-evaluation-harness and Inspect, written for real."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.commands import compare, import_samples
from harness.records.stored import StoredRun, read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # the evaluation frameworks have warnings of their own

WORDS = ("rain", "tea", "snow and ice", "bread", "a very long story", "the sea", "cats", "a small dog", "old songs")
CHOICE = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "target_delimiter": " ",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
    ],
    "metadata": {"version": 3},
}
WRITTEN = {
    "task": "tiny_written",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {"name": "shout", "filter": [{"function": "uppercase"}, {"function": "take_first"}]},
    ],
}

Written = Callable[..., Path]


@pytest.fixture
def logged(vector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Written:
    """``python -m harness.lm_eval … --log-samples DIR``, steered or not; gives the folder."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from harness.bridges.lm_eval import main

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    rows = [
        {"question": f"What of {topic}?", "choices": ["red", "sun"], "label": place % 2}
        for place, topic in enumerate(WORDS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for task in (CHOICE, WRITTEN):
        content = {**task, "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
        (tmp_path / "tasks" / f"{task['task']}.yaml").write_text(json.dumps(content))  # JSON is YAML
    vector.at(layer=1, strength=4).save(tmp_path / "caa.safetensors")

    def run(folder: str, *, steered: bool, tasks: tuple[str, ...] = ("tiny_choice",), limit: int = 9) -> Path:
        steer = ["caa.safetensors"] if steered else []
        options = ["--model", "tiny", "--include-path", "tasks", "--limit", str(limit), "--log-samples", folder]
        status = main([*steer, *options, "--tasks", *tasks])
        assert status == 0, capsys.readouterr().err
        return Path(folder)

    return run


def run_of(out: Path, method: str, task: str) -> StoredRun:
    runs = [read_run(file.parent) for file in sorted(out.glob("*/run.json"))]
    (run,) = [run for run in runs if (run.record.labels.method, run.record.labels.task) == (method, task)]
    return run


def raw_scores(folder: Path, task: str, metric: str, kept_by: str = "none") -> list[float]:
    """The metric of each document as lm-evaluation-harness wrote it, in the order of documents."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return [sample[metric] for sample in sorted(samples, key=lambda s: s["doc_id"]) if sample["filter"] == kept_by]


def test_their_samples_become_our_paired_report(logged: Written, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ("tiny_choice", "tiny_written")
    plain, steered = (logged(name, steered=name == "steered", tasks=tasks) for name in ("plain", "steered"))
    capsys.readouterr()

    assert import_samples.main([f"baseline={plain}", f"caa={steered}", "out=runs"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("wrote runs/") == 4
    assert "left out brier_score: its items have no numbers" in printed

    # Each document's score is the one in lm-evaluation-harness's own file, and what steered is known from there.
    before, after = (raw_scores(folder, "tiny_choice", "acc") for folder in (plain, steered))
    assert before != after, "steering changed nothing, so nothing can be seen below"
    run = run_of(Path("runs"), "caa", "tiny_choice")
    assert list(run.scores["acc"].values()) == after
    assert run.record.access == ("imported", "pairs")
    assert not run.record.oracle
    assert all(item.record.generation.text.endswith(("red", "sun")) for item in run.selected.values())
    assert run_of(Path("runs"), "baseline", "tiny_choice").record.estimates["acc"].value == pytest.approx(
        sum(before) / len(before)
    )
    assert set(run_of(Path("runs"), "caa", "tiny_written").scores) == {"exact_match,whole", "exact_match,shout"}

    assert compare.main(["runs"]) == 0
    table = capsys.readouterr().out
    gained, lost = (sum(b - a == sign for a, b in zip(before, after, strict=True)) for sign in (1, -1))
    assert "tiny_choice on tiny" in table
    assert "tiny_written on tiny" in table
    row = next(line for line in table.splitlines() if re.match(r"\W*caa\b", line))
    assert f"{sum(after) / 9:.3f}"[:4] in row, table
    assert Path("runs/report.html").is_file()
    contrasts = json.loads(Path("runs/comparison.json").read_text())
    assert f"{gained}" in json.dumps(contrasts)
    assert f"{lost}" in json.dumps(contrasts)


def test_importing_again_changes_nothing(logged: Written) -> None:
    plain = logged("plain", steered=False)
    folders = []
    for _ in range(2):
        assert import_samples.main([f"baseline={plain}", "out=runs"]) == 0
        folders.append(sorted(path.parent.name for path in Path("runs").glob("*/run.json")))
    assert folders[0] == folders[1]
    assert len(folders[0]) == 1


def test_what_cannot_be_paired_is_refused(logged: Written, capsys: pytest.CaptureFixture[str]) -> None:
    plain, fewer = logged("plain", steered=False), logged("fewer", steered=True, limit=4)

    def error(*arguments: str) -> str:
        capsys.readouterr()
        assert import_samples.main([*arguments, "out=runs"]) == 2
        assert not list(Path().glob("runs/*/run.json"))
        return capsys.readouterr().err

    assert "answered different items, 4 of 9 are shared" in error(f"baseline={plain}", f"caa={fewer}")
    assert "was written by a steered model (caa): not a baseline" in error(f"baseline={fewer}")
    assert "--access names cba, which is no label here" in error(f"baseline={plain}", "--access=cba=none")
    assert "LABEL=PATH" in error(str(plain))
    assert "holds no samples_*.jsonl" in error("baseline=tasks")

    (file,) = plain.rglob("samples_*.jsonl")
    content = file.read_text()
    file.write_text(content.replace("What of tea?", "And what of tea?"))
    other = logged("other", steered=True)
    assert "were asked 1 items in different words, doc-1-" in error(f"baseline={plain}", f"caa={other}")
    file.write_text(content + '{"doc": 1}\n')
    assert "line 10 is no sample of lm-evaluation-harness: it has no doc_id" in error(f"baseline={plain}")
    next(plain.rglob("results_*.json")).unlink()
    assert "there must be one results_" in error(f"baseline={plain}")


def test_a_folder_takes_the_samples_of_one_run(logged: Written, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.bridges.lm_eval import main

    logged("plain", steered=False)
    capsys.readouterr()
    assert main(["--model", "tiny", "--tasks", "tiny_choice", "--log-samples", "plain"]) == 2
    assert "holds samples already" in capsys.readouterr().err


def test_files_of_a_foreign_model_say_less_and_count_as_oracles(logged: Written) -> None:
    """As lm-evaluation-harness writes them about a model of its own: nothing about steering or access."""
    folders = [logged("plain", steered=False), logged("steered", steered=True)]
    for folder in folders:
        (file,) = folder.rglob("results_*.json")
        content = json.loads(file.read_text())
        for name in ("model", "model_identity", "steering"):
            del content["config"][name]
        content["model_name"] = "ORG/NAME"
        file.write_text(json.dumps(content))

    entries = [f"{label}={folder}" for label, folder in zip(("baseline", "mine"), folders, strict=True)]
    assert import_samples.main([*entries, "out=unsaid"]) == 0
    assert run_of(Path("unsaid"), "mine", "tiny_choice").record.oracle
    assert not run_of(Path("unsaid"), "baseline", "tiny_choice").record.oracle
    assert import_samples.main([*entries, "out=said", "--access=mine=texts"]) == 0
    record = run_of(Path("said"), "mine", "tiny_choice").record
    assert (record.oracle, record.access, record.labels.model) == (False, ("imported", "texts"), "ORG/NAME")


def test_logs_of_inspect(vector, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    from inspect_ai import Epochs, Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    import harness.bridges.inspect  # noqa: F401 (an installed copy is found by its entry point)

    monkeypatch.chdir(tmp_path)
    bundle = vector.at(layer=1, strength=4).save(tmp_path / "caa.safetensors")
    means = {}
    for folder in ("plain", "steered"):
        options: dict[str, Any] = {"steer": str(bundle)} if folder == "steered" else {}
        model = get_model("harness/tiny", dtype="float64", memoize=False, **options)
        dataset = [Sample(input=f"What of {word}?", target="a") for word in WORDS]
        task = Task(name="tiny_letters", dataset=dataset, scorer=includes(), epochs=Epochs(2))
        (log,) = eval(task, model=model, max_tokens=8, log_dir=folder, display="none")
        assert log.results
        means[folder] = log.results.scores[0].metrics["accuracy"].value

    assert import_samples.main(["baseline=plain", "caa=steered", "out=runs", "--access=caa=pairs"]) == 0
    runs = {label: run_of(Path("runs"), label, "tiny_letters") for label in ("baseline", "caa")}
    assert runs["baseline"].record.estimates["includes"].value == pytest.approx(means["plain"])
    assert runs["caa"].record.estimates["includes"].value == pytest.approx(means["steered"])
    capsys.readouterr()
    assert compare.main(["runs"]) == 0
    assert "tiny_letters on harness/tiny" in capsys.readouterr().out
    written = json.loads(Path("runs/comparison.json").read_text())
    assert written
    assert len({example.record.example.unit for example in runs["caa"].selected.values()}) == len(WORDS)
