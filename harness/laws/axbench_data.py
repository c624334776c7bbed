"""A small data set in the authors' layout, for tests that need AxBench's files."""

from __future__ import annotations

from pathlib import Path

import pyarrow
from pyarrow import parquet

from harness.tasks.axbench_files import COLUMNS

AUTHORS = ("generate/train_data.parquet", "inference/latent_eval_data.parquet")
HUB = ("train/data.parquet", "test/data.parquet")
GENRES = {0: "text", 1: "code", 2: "text"}


def row(concept: int, category: str, number: int, genre: str | None = None) -> dict:
    """A row of the authors' form; outputs of one kind differ in length."""
    name = "EEEEE" if concept == -1 else f"things of kind {concept}"
    values = (f"ask {number} of {concept}", f"{category} {concept} " + "x" * number, name)
    return dict(zip(COLUMNS, (*values, genre or GENRES[concept], category, concept), strict=True))


def training() -> list[dict]:
    """Five plain texts of two genres, four positive ones of three concepts."""
    plain = [row(-1, "negative", number, genre) for genre in ("text", "code") for number in range(5)]
    return plain + [row(concept, "positive", number) for concept in GENRES for number in range(4)]


def held_out() -> list[dict]:
    """Six positive, six negative and one hard negative text of each concept."""
    kinds = (("positive", 6), ("negative", 6), ("hard negative", 1))
    rows = []
    for concept in GENRES:
        for kind, count in kinds:
            rows += [row(concept, kind, number) for number in range(count)]
    return rows


def write(rows: list[dict], path: Path) -> None:
    """Rows as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_folder(folder: Path) -> Path:
    """Both files in the authors' layout."""
    write(training(), folder / AUTHORS[0])
    write(held_out(), folder / AUTHORS[1])
    return folder
