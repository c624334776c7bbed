"""Texts that other code wrote: import, score with grades from a table, compare with published values."""

import csv
import json
import runpy
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from child import Cli

from harness.commands import compare, import_, score
from harness.records.stored import read_run

PROMPT = "Question: {question}\nAnswer and explanation:"
FULL = ("--question=prompt", "--gold=ground_truth", "--text=generated_text", f"--prompt={PROMPT}", "--echoed")
BASELINE = ("--question=question", "--gold=target", "--text=predicted", "--echoed")
COMMON = ("--grades=quality=score", "--task=trivia", "--model=gemma", "--failures-of=9")

QUESTIONS = {  # question: (gold, un-steered, steered with its grade, or none)
    "Who first swam the Blue Lake?": ("Ada Winter", (" It was Bob.", "2"), (" Ada Winter did.", "3")),
    "Where is the Silver Tower?": ("Port Amsel", (" In Rome.", "1"), (" Port Amsel", "5")),
    "When did the ferry sink?": ("1911", (" In 1911, they say.", "2"), (" \n", "1")),
    "What is the cat called?": ("Mister Blot", (" Blot", "2"), (" Mister", "")),
    "How many bells ring?": ("14", (" Forty.", "1"), (" 14 14 14", "2")),
}
"""By hand, overlap is that of prompt and completion in NLTK's words, accurate means 0.5 overlap + 0.1 grade >= 0.6:
un-steered 1911 is 0.5 + 0.2; steered: Ada 0.5 + 0.3, Amsel 0.5 + 0.5, the blank 0 + 0.1, Mister 0.25 and no grade, 14
0.5 + 0.2."""


def written(path: Path, rows: Iterable[Mapping[str, object]]) -> str:
    listed = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A baseline and a steered file, laid out as the authors of a paper published theirs; rows in another order."""
    baseline = (
        {
            "prompt_id": n,
            "question": question,
            "target": gold,
            "predicted": question + text,
            "score": grade,
            "notes": "",
        }
        for n, (question, (gold, (text, grade), _)) in enumerate(reversed(QUESTIONS.items()))
    )
    steered = (
        {
            "prompt_idx": n, "alpha": 0.25 + n / 8, "gamma": 0.5, "token_overlap": 0, "perplexity": 9.5,
            "combined_score": 0.1, "generated_text": PROMPT.format(question=question) + text, "prompt": question,
            "ground_truth": f" {gold}", "explanation": "", "score": grade,
        }
        for n, (question, (gold, _, (text, grade))) in enumerate(QUESTIONS.items())
    )  # fmt: skip
    return written(tmp_path / "baseline.csv", baseline), written(tmp_path / "full.csv", steered)


def imported(tool: Cli, file: str, *options: str) -> Path:
    done = tool(import_.main, file, "out=runs", *options)
    assert done.status == 0, done.err
    return Path(done.out.split()[1].rstrip(":"))


def scores_of(folder: Path, metric: str) -> dict[str, float | None]:
    run = read_run(folder)
    return {run.selected[name].record.example.question: value for name, value in run.scores[metric].items()}


def new_run(printed: str) -> Path:
    return Path(printed.split("wrote ")[-1].strip())


JUDGED = (
    "evaluator=[token_overlap,composite]", "evaluator.token_overlap.scored_text=full",
    "evaluator.token_overlap.tokens=nltk", "evaluator.composite.single_score=true",
    "evaluator.composite.graded_text=full", "evaluator.composite.overlap.scored_text=full",
    "evaluator.composite.overlap.tokens=nltk", "judge=table", "judge.path=runs/grades.jsonl",
)  # fmt: skip


def test_the_whole_walk(tool: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    baseline = imported(tool, files[0], *BASELINE, *COMMON, "--method=baseline", "--access=none")
    steered = imported(
        tool, files[1], *FULL, *COMMON, "--method=full_layer", "--access=gold", "--parameters=alpha,gamma",
        "--optimised=overlap,perplexity",
    )  # fmt: skip
    done = tool(score.main, str(baseline), str(steered), *JUDGED)
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("wrote ")]
    plain, moved = map(new_run, lines)

    assert scores_of(plain, "accurate") == {question: float("ferry" in question) for question in QUESTIONS}
    assert scores_of(moved, "accurate") == dict(zip(QUESTIONS, [1.0, 1.0, 0.0, None, 1.0], strict=True))
    assert scores_of(moved, "overlap") == dict(zip(QUESTIONS, [1.0, 1.0, 0.0, 0.5, 1.0], strict=True))
    record = read_run(moved).record
    assert (record.oracle, record.access) == (True, ("imported", "gold"))
    assert record.optimised_metrics == ("overlap", "perplexity")
    assert record.provenance.imported_from is not None
    assert record.provenance.imported_from.startswith("full.csv ")
    assert record.subset is not None
    assert record.subset.of == 9
    assert "unscored" in done.out

    claims = {
        "baseline": {"accurate": {"value": 0.2, "tolerance": 0.01, "source": "a paper", "random_model": 0.0}},
        "full_layer": {"accurate": {"value": 0.75, "tolerance": 0.01, "source": "a paper", "random_model": 0.0}},
    }
    (tmp_path / "claims.yaml").write_text(json.dumps({"expect": claims}))
    compared = tool(compare.main, "runs", "--expect", "claims.yaml")
    assert compared.status == 0, compared.err + compared.out
    assert compared.out.count("inside") == 2, compared.out
    assert "outside" not in compared.out
    assert "not counted" not in compared.out.lower()


def test_what_was_imported_lies_as_in_any_run(tool: Cli, files: tuple[str, str]) -> None:
    folder = imported(tool, files[1], *FULL, *COMMON, "--method=full_layer", "--parameters=alpha,gamma", "--name=mine")
    assert folder == Path("runs/mine")

    run = read_run(folder)
    first, *_, last = run.selected.values()
    assert first.record.example.question == "Who first swam the Blue Lake?"
    assert first.record.example.answer == "Ada Winter", "golds are stripped"
    assert first.record.prompt == "Question: Who first swam the Blue Lake?\nAnswer and explanation:"
    assert first.record.generation.text == " Ada Winter did.", "completions are not"
    assert first.record.generation.parameters == {"alpha": 0.25, "gamma": 0.5}
    assert last.record.generation.parameters["alpha"] == 0.75

    assert run.record.oracle, "who does not say what was seen counts as having seen the answers"
    assert run.record.access == ("imported", "unknown")
    assert run.record.awaits_scoring

    again = imported(tool, files[1], *FULL, *COMMON, "--method=full_layer", "--parameters=alpha,gamma", "--name=mine")
    assert again == folder
    assert read_run(again).record.key == run.record.key


def test_json_lines_and_parquet_give_the_same_texts(tool: Cli, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"q": "Who?", "a": "Ada", "t": " Ada.", "also": ["A. Winter"], "grade": 2.0},
        {"q": "When?", "a": "1911", "t": "  ", "also": [], "grade": None},
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "texts.parquet")
    columns = ("--question=q", "--gold=a", "--text=t", "--aliases=also", "--grades=quality=grade", "--method=m")
    runs = [
        read_run(imported(tool, file, *columns, f"--name={name}"))
        for name, file in (("one", "texts.jsonl"), ("two", "texts.parquet"))
    ]
    texts = [[item.record for item in run.selected.values()] for run in runs]
    assert texts[0] == texts[1]
    assert texts[0][0].example.aliases == ("A. Winter",)
    assert texts[0][1].generation.text == "  "
    graded = [json.loads(line) for line in (tmp_path / "runs/grades.jsonl").read_text().splitlines()]
    assert graded == [{"question": "Who?", "answer": " Ada.", "quality": "2"}]


def test_likelihoods_need_a_scorer_that_is_named(tool: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    folder = imported(tool, files[1], *FULL, *COMMON, "--method=full_layer")
    error = tool(score.main, str(folder), "evaluator=[perplexity]").error
    assert "these texts were imported" in error
    assert "scorer=gpt2" in error
    tiny = ("scorer=gpt2", "scorer.model.kind=tiny", "scorer.model.id=null", "scorer.model.family=gpt2")
    full = ("evaluator=[perplexity]", "evaluator.perplexity.scored_text=full")
    done = tool(score.main, str(folder), *full, *tiny, "scorer.model.device=cpu")
    assert done.status == 0, done.err
    values = scores_of(new_run(done.out), "perplexity")
    assert all(value is not None and value > 1 for value in values.values()), "blank ones too, with their prompt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--question=prompt": "--question=promt"}, "row 1 has no column promt; found prompt_idx, alpha"),
        ({"--text=generated_text": "--text=explanation"}, "row 1: explanation must begin with the prompt"),
        ({f"--prompt={PROMPT}": "--prompt=Answer:"}, "--prompt must contain {question}"),
        ({"--gold=ground_truth": "--gold=explanation"}, "row 1: explanation must not be empty"),
        ({"out=runs": "runs"}, "say where to write with out=DIR, got runs"),
        ({"full.csv": "absent.csv"}, "FILE=absent.csv does not exist"),
        ({"full.csv": "full.txt"}, "FILE must end in .csv, .jsonl, .json, .parquet"),
        (
            {"--method=m": "--parameters=explanation --method=m"},
            "row 1: parameter explanation must be a number, got ''",
        ),
        ({"--method=m": "--access=answers --method=m"}, "--access must be none or some of pairs"),
        ({"--method=m": "--grades=niceness=score --method=m"}, "--grades must be RUBRIC=COLUMN"),
        ({"--method=m": "--failures-of=2 --method=m"}, "--failures-of must be at least the number of rows, 5, got 2"),
    ],
)
def test_wrong_imports_are_one_line(
    tool: Cli, files: tuple[str, str], tmp_path: Path, changes: Mapping[str, str], message: str
) -> None:
    given: list[str] = []
    for item in ("full.csv", "out=runs", *FULL, "--method=m"):
        given += changes[item].split() if item in changes else [item]
    assert message in tool(import_.main, *given).error
    assert not list(tmp_path.glob("runs/**/generations.jsonl"))


def test_a_question_that_stands_twice_is_refused(tool: Cli, tmp_path: Path) -> None:
    rows: Sequence[Mapping[str, str]] = [{"q": text, "a": "Ada", "t": "x"} for text in ("Who?", "When?", "who? ")]
    file = written(tmp_path / "twice.csv", rows)
    columns = ("--question=q", "--gold=a", "--text=t", "--method=m")
    error = tool(import_.main, file, "out=runs", *columns).error
    assert "row 3 asks what row 1 asks, one text per question is due: 'who? '" in error


def test_two_grades_for_one_text_are_refused(tool: Cli, files: tuple[str, str], tmp_path: Path) -> None:
    imported(tool, files[1], *FULL, *COMMON, "--method=full_layer")
    rows = [dict(row, score="4") for row in csv.DictReader(Path(files[1]).read_text(encoding="utf-8").splitlines(True))]
    other = written(tmp_path / "other.csv", rows)
    assert "holds another grade of quality" in tool(import_.main, other, "out=runs", *FULL, *COMMON, "--method=m").error


def test_an_import_without_scores_is_nothing_to_compare(tool: Cli, files: tuple[str, str]) -> None:
    folder = imported(tool, files[1], *FULL, "--method=full_layer")
    assert "imported texts without scores" in tool(compare.main, str(folder)).error


def test_it_is_a_module_that_can_be_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["import", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("harness.import", run_name="__main__")
    assert stop.value.code == 0
    assert "--echoed" in capsys.readouterr().out
