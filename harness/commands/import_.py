"""`python -m harness.import FILE --question COLUMN --gold COLUMN --text COLUMN --method LABEL out=DIR`.

Makes a run from texts that other code wrote, one row per question (CSV, JSON Lines, JSON, Parquet). It has no scores
yet: `python -m harness.score` gives it some, with any evaluator, and `python -m harness.compare` takes it from there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.build import check_folder_name, check_out
from harness.commands.parser import OneLineParser
from harness.config import composed, explain, plain_values
from harness.data import Access, Example
from harness.judges.prompts import RUBRICS
from harness.judges.table import grade_of
from harness.records.keys import Keys, key_of
from harness.records.lines import read_lines, replaced, write_lines
from harness.records.locks import locked
from harness.records.provenance import commit, versions
from harness.records.rows import Selected
from harness.records.run import Labels, Provenance, RunRecord, SearchNote, Subset
from harness.records.store import GenerationStore
from harness.run import earlier_record, folder_for
from harness.scoring import Generation, Record
from harness.tasks.rows import Row, check_columns, file_rows, plain_text

GRADES_FILE = "grades.jsonl"
IMPORTED = "imported"
"""Stands where the name of a choice would stand in what other code made."""
_LOCK_WAIT_SECONDS = 60.0
_ABOUT = "Make a run that can be scored and compared from texts that other code wrote, one row per question."
_SHOWN = 60
"""Characters of a text in a message."""


@dataclass(frozen=True)
class Layout:
    """Which column holds what.

    Args:
        question, gold, text: column names.
        aliases: column with a list of other right answers; None for none.
        prompt: what the model read, with ``{question}``.
        echoed: the texts begin with the prompt, which is cut off.
        parameters: columns of numbers that the method worked with.
        grades: columns of grades by rubric.
    """

    question: str
    gold: str
    text: str
    aliases: str | None
    prompt: str
    echoed: bool
    parameters: tuple[str, ...]
    grades: Mapping[str, str]

    @property
    def columns(self) -> list[str]:
        """Every column that a row must have."""
        aliases = [self.aliases] if self.aliases else []
        return [self.question, self.gold, self.text, *aliases, *self.parameters, *self.grades.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Import one file; exit status 0, or 2 with one line that says what is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        folder, count, grades = _imported(options, ["python", "-m", "harness.import", *given])
    except (ValueError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2

    print(f"wrote {folder}: {count} texts by {options.method}, not scored yet")
    if grades:
        print(f"wrote {grades}: judge=table judge.path={grades}")
    print(f"next: python -m harness.score {folder} 'evaluator=[token_overlap]'")
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m harness.import", description=_ABOUT)
    parser.add_argument("file", metavar="FILE", help="CSV, JSON Lines, JSON or Parquet, or an http(s) URL of one")
    parser.add_argument("out", metavar="out=DIR", help="where runs lie; those to be compared belong into one folder")
    for name, text in (
        ("question", "column of the questions: they are the rows' identity"),
        ("gold", "column of the right answers"),
        ("text", "column of the texts that were written"),
    ):
        parser.add_argument(f"--{name}", required=True, metavar="COLUMN", help=text)
    parser.add_argument("--method", required=True, metavar="LABEL", help="the method's name in tables")
    parser.add_argument("--aliases", metavar="COLUMN", help="column with a list of other right answers")
    parser.add_argument(
        "--prompt", default="{question}", metavar="TEMPLATE", help="what the model read, with {question}"
    )
    parser.add_argument("--echoed", action="store_true", help="the texts begin with the prompt: cut it off")
    parser.add_argument(
        "--parameters", default="", metavar="COLUMN,…", help="columns of numbers the method worked with"
    )
    parser.add_argument(
        "--grades", action="append", default=[], metavar="RUBRIC=COLUMN",
        help=f"column of grades, for judge=table; rubrics: {', '.join(RUBRICS)}",
    )  # fmt: skip
    parser.add_argument(
        "--access", metavar="LIST",
        help=f"what the method was shown besides the question: none, or some of {','.join(Access)}; not said, it "
        "counts as having seen the answers",
    )  # fmt: skip
    parser.add_argument("--optimised", default="", metavar="METRIC,…", help="metrics maximised knowing the answers")
    parser.add_argument(
        "--failures-of", type=int, metavar="N",
        help="these are those of N questions that the un-steered model got wrong",
    )  # fmt: skip
    for axis in ("task", "model"):
        parser.add_argument(f"--{axis}", default=IMPORTED, metavar="LABEL", help=f"the {axis}'s name in tables")
    parser.add_argument("--control", default="none", metavar="LABEL", help="shuffled, random, best_of_n, …")
    parser.add_argument("--name", metavar="NAME", help="name of the run's folder")
    return parser


def _imported(options: argparse.Namespace, command: Sequence[str]) -> tuple[Path, int, Path | None]:
    """The run's folder, how many texts it holds, and where the grades lie."""
    out = folder_of(options.out)
    _check_labels(options)
    layout = _layout(options)
    rows = file_rows(options.file, "FILE")
    if not rows:
        raise ValueError(f"{options.file} holds no rows")
    check_columns(rows, layout.columns, options.file)
    records = read_records(rows, layout, options.file)
    record, made_from = _run(options, layout, records, rows, command)

    grades = _keep_grades(out / GRADES_FILE, rows, layout) if layout.grades else None
    folder = out / options.name if options.name else folder_for(out, record.labels, record.key)
    store = GenerationStore(out / "generations" / key_of(made_from))
    with locked(folder, _LOCK_WAIT_SECONDS), locked(store.folder, _LOCK_WAIT_SECONDS):
        earlier_record(folder, record.key)  # refuses a folder that holds another run
        if not store.files:
            store.begin(made_from)
            store.add_selected([Selected(item, 0) for item in records])
            store.seal()
        place = os.path.relpath(store.folder, folder)
        record.model_copy(update={"name": folder.name, "generations": place, "files": store.files}).write(folder)
    return folder, len(records), grades


def folder_of(item: str) -> Path:
    """The folder that ``out=DIR`` names."""
    name, equals, value = item.partition("=")
    if name != "out" or not equals or not value:
        raise ValueError(f"say where to write with out=DIR, got {item}")
    check_out(value)
    return Path(value)


def _check_labels(options: argparse.Namespace) -> None:
    """Raise ValueError unless labels can stand in the name of the run's folder, and in tables."""
    for option in ("method", "control", "name"):
        check_folder_name(f"--{option}", getattr(options, option))
    for option in ("task", "model"):  # OWNER/NAME is usual for both; folders get another sign in its place
        check_folder_name(f"--{option}", getattr(options, option).replace("/", "-"))


def _layout(options: argparse.Namespace) -> Layout:
    if "{question}" not in options.prompt:
        raise ValueError(f"--prompt must contain {{question}}, got {options.prompt!r}")

    grades = dict(item.partition("=")[::2] for item in options.grades)
    for rubric, column in grades.items():
        if rubric not in RUBRICS or not column:
            raise ValueError(f"--grades must be RUBRIC=COLUMN with one of {', '.join(RUBRICS)}, got {rubric}={column}")

    return Layout(
        question=options.question,
        gold=options.gold,
        text=options.text,
        aliases=options.aliases,
        prompt=options.prompt,
        echoed=options.echoed,
        parameters=_listed(options.parameters),
        grades=grades,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def read_records(rows: Sequence[Row], layout: Layout, origin: str) -> list[Record]:
    """One record per row. Its id is made from the question, so that files in another order can be compared.

    Args:
        rows: of the file, with all columns.
        layout: which column holds what.
        origin: the file, for messages.

    Raises:
        ValueError: a question is empty or stands twice, a gold is empty, a parameter is not a number, or a text does
            not begin with its prompt although it should.
    """
    records: list[Record] = []
    first_row: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{origin}: row {number}"
        record = _record(row, layout, where)
        earlier = first_row.setdefault(record.example.id, number)
        if earlier != number:
            raise ValueError(f"{where} asks what row {earlier} asks, one text per question is due: {_cut(row, layout)}")
        records.append(record)
    return records


def _record(row: Row, layout: Layout, where: str) -> Record:
    question, gold = _text(row, layout.question, where), _text(row, layout.gold, where).strip()
    for column, value in ((layout.question, question), (layout.gold, gold)):
        if not value.strip():
            raise ValueError(f"{where}: {column} must not be empty")
    aliases = row[layout.aliases] if layout.aliases else ()
    if not isinstance(aliases, list | tuple) or any(isinstance(alias, list | dict) for alias in aliases):
        raise ValueError(f"{where}: {layout.aliases} must be a list of texts, got {aliases!r}")

    prompt, text = layout.prompt.replace("{question}", question), _text(row, layout.text, where)
    if layout.echoed and not text.startswith(prompt):
        raise ValueError(
            f"{where}: {layout.text} must begin with the prompt {prompt[:_SHOWN]!r}, got {text[:_SHOWN]!r}; mend "
            "--prompt, or leave --echoed out if the column holds completions alone"
        )
    example = Example(_id_of(question), question.strip(), gold, tuple(map(plain_text, aliases)))
    generation = Generation(
        example_id=example.id,
        parameters={column: _number(row[column], column, where) for column in layout.parameters},
        text=text[len(prompt) :] if layout.echoed else text,
        token_ids=(),
        finish="stop",
    )
    return Record(example, generation, prompt)


def _text(row: Row, column: str, where: str) -> str:
    """A cell as text.

    Raises:
        ValueError: it holds a list or a table.
    """
    if isinstance(row[column], list | dict):
        raise ValueError(f"{where}: {column} must be a text, got {str(row[column])[:_SHOWN]}")
    return plain_text(row[column])


def _id_of(question: str) -> str:
    """The same for questions that differ in case and white space alone."""
    same = " ".join(question.casefold().split())
    return f"q-{hashlib.sha256(same.encode()).hexdigest()[:16]}"


def _cut(row: Row, layout: Layout) -> str:
    return repr(plain_text(row[layout.question])[:_SHOWN])


def _number(cell: Any, column: str, where: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: parameter {column} must be a number, got {cell!r}") from None


def _run(
    options: argparse.Namespace,
    layout: Layout,
    records: Sequence[Record],
    rows: Sequence[Row],
    command: Sequence[str],
) -> tuple[RunRecord, dict[str, Any]]:
    """The run without its place on the disk, and what its generations are made from."""
    content = key_of([[row[column] for column in layout.columns] for row in rows])
    labels = Labels(
        method=options.method, control=options.control, task=options.task, model=options.model, seed="0",
        protocol="standard" if options.failures_of is None else "baseline_failures",
    )  # fmt: skip
    made_from = {
        IMPORTED: {"content": content, "prompt": layout.prompt, "echoed": layout.echoed},
        "labels": labels.model_dump(),
        "seed": 0,
    }
    subset = _subset(options.failures_of, records)
    keys = Keys.of(made_from, {}, subset.decided_by if subset else ("all", "selected"))
    access = stated_access(options.access)
    optimises = _listed(options.optimised)
    record = RunRecord(
        key=keys.run,
        entry=keys.entry,
        name="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="done",
        config=imported_config(labels),
        labels=labels,
        access=(IMPORTED, *access),
        oracle="unknown" in access or Access.GOLD in access,
        searched=SearchNote(access=(Access.GOLD,), optimises=optimises) if optimises else None,
        evaluators={},
        subset=subset,
        num_examples=len(records),
        provenance=Provenance(
            commit=commit(),
            versions=versions(),
            model_identity=options.model,
            task_fingerprint=_fingerprint(records),
            command=shlex.join(command),
            imported_from=f"{Path(options.file).name} {content}",
        ),
    )
    return record, made_from


def stated_access(stated: str | None) -> tuple[str, ...]:
    """What the method was shown; "unknown" if nobody says."""
    if stated is None:
        return ("unknown",)
    access = _listed(stated)
    if access == ("none",):
        return ()
    for item in access:
        if item not in list(Access):
            raise ValueError(f"--access must be none or some of {', '.join(Access)}, got {item}")
    return tuple(sorted(access))


def _subset(asked: int | None, records: Sequence[Record]) -> Subset | None:
    if asked is None:
        return None
    if asked < len(records):
        raise ValueError(f"--failures-of must be at least the number of rows, {len(records)}, got {asked}")
    name, ids = "baseline_incorrect", tuple(record.example.id for record in records)
    return Subset(name=name, decided_by=(name, "selected", key_of(sorted(ids))), ids=ids, of=asked)


def _fingerprint(records: Sequence[Record]) -> str:
    """Of questions and golds, in any order."""
    asked = sorted([record.example.id, record.example.answer, *record.example.aliases] for record in records)
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def imported_config(labels: Labels) -> dict[str, Any]:
    """What scoring starts from; what made the texts is known by its labels alone."""
    chosen = plain_values(composed([f"protocol={labels.protocol}", "tracking=none"])[0])
    known = {name: {IMPORTED: getattr(labels, name)} for name in ("method", "control", "task", "model")}
    scoring = {name: chosen[name] for name in ("judge", "scorer", "protocol", "tracking", "seed")}
    return {**known, **scoring, "evaluator": {}}


def _keep_grades(path: Path, rows: Sequence[Row], layout: Layout) -> Path:
    """Add the grades of a file to the folder's one table, for runs are compared only on grades from one table."""
    table = {(row["question"], row["answer"]): dict(row) for row in read_lines(path)}

    for row in rows:
        question, answer = plain_text(row[layout.question]), plain_text(row[layout.text])
        grades = {rubric: grade_of(row[column]) for rubric, column in layout.grades.items()}
        if given := {rubric: grade for rubric, grade in grades.items() if grade}:
            known = table.setdefault((question, answer), {"question": question, "answer": answer})
            clash = [rubric for rubric, grade in given.items() if known.get(rubric, grade) != grade]
            if clash:
                raise ValueError(
                    f"{path} holds another grade of {clash[0]} for the text that answers {question[:_SHOWN]!r}"
                )
            known |= given

    with replaced(path) as draft:
        write_lines(draft, table.values())
    return path
