"""Reads a run's directory and says what is wrong with it. The run itself is never changed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.scoring import Metric

UNSTEERED_CONTROLS = frozenset({"best_of_n", "gold_in_prompt"})
"""Controls that replace the steering: they need no proof of it."""


@dataclass(frozen=True)
class StoredRun:
    """One run as it lies on disk.

    Args:
        path: the run's directory.
        info: run.json.
        scores: value (None where unscored) by metric and example id.
        records: generations with their examples, one mapping per example.
        judged: metrics whose scores name the judge that gave them.
    """

    path: Path
    info: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float | None]]
    records: tuple[Mapping[str, Any], ...]
    judged: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The run's name, unique in its output directory."""
        return str(self.info.get("name") or self.path.name)

    def label(self, key: str) -> str:
        """One of method, search, control, task, model, seed; "" if it does not apply."""
        value = self.node("labels").get(key)
        return "" if value in (None, "none") else str(value)

    def node(self, key: str) -> Mapping[str, Any]:
        """A mapping inside run.json, empty if it is missing."""
        return self.info.get(key) or {}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Every metric that the run's evaluators declare, in their order."""
        found = {}
        for evaluator in self.node("evaluators").values():
            for item in evaluator.get("metrics", ()):
                low, high = (_bound(item.get(key), sign) for key, sign in (("low", -1), ("high", 1)))
                kind = item.get("kind", "mean")
                found[item["name"]] = Metric(item["name"], bool(item["higher_is_better"]), low, high, kind)
        return found

    @cached_property
    def examples(self) -> dict[str, tuple[str, str]]:
        """Question and gold answer by example id."""
        return {row["example_id"]: (row.get("question", ""), row.get("answer", "")) for row in self.records}

    @cached_property
    def scored_examples(self) -> dict[str, tuple[str, str]]:
        """The same for the examples that count: a run on a subset generates more than it scores."""
        scored = {example for column in self.scores.values() for example in column}
        return {example: texts for example, texts in self.examples.items() if example in scored}

    @property
    def trials_path(self) -> Path:
        """Where the search wrote its trials; the file is absent for runs without a search."""
        return self._generations / "trials.jsonl"

    @property
    def _generations(self) -> Path:
        return generations_directory(self.path, self.info)

    def trials(self) -> Iterator[Mapping[str, Any]]:
        """The search's trials in file order."""
        return read_lines(self.trials_path) if self.trials_path.exists() else iter(())


def generations_directory(path: Path, info: Mapping[str, Any]) -> Path:
    """The directory that run.json points to, relative to the run or to the directory of all runs."""
    stated = Path(info.get("generations") or f"../generations/{info.get('key', path.name)}")
    candidates = [path / stated, path.parent / stated, path.parent / "generations" / str(info.get("key", ""))]
    return next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])


def read_run(path: Path) -> StoredRun:
    """Read a run's directory; scores and generations may be missing from a failed run.

    Raises:
        ValueError: if there is no run.json, or it is not JSON.
    """
    file = path / "run.json"
    if not file.is_file():
        raise ValueError(f"{path} is not a run: it has no run.json")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    scores: dict[str, dict[str, float | None]] = {}
    judged = set()
    for row in read_lines(path / "scores.jsonl"):
        scores.setdefault(row["metric"], {})[row["example_id"]] = row["value"]
        if row["metric"] not in judged and _names_judge(row.get("details") or {}):
            judged.add(row["metric"])
    records = tuple(read_lines(generations_directory(path, info) / "generations.jsonl"))
    return StoredRun(path, info, scores, records, frozenset(judged))


def _names_judge(details: Mapping[str, Any]) -> bool:
    """Whether a judge stands in a score's details, or in those of one of its parts."""
    return "judge" in details or any(isinstance(part, Mapping) and "judge" in part for part in details.values())


def read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a JSON Lines file; nothing if it is missing. A torn last line is dropped.

    Raises:
        ValueError: if a line before the last one is not JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    lines = [line for line in lines if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from None
        yield row


def find_runs(paths: list[Path]) -> list[Path]:
    """Run directories among and under the given paths, in order, each once.

    Raises:
        ValueError: if a path holds no run.
    """
    found: list[Path] = []
    for path in paths:
        here = [path] if (path / "run.json").is_file() else sorted(file.parent for file in path.rglob("run.json"))
        if not here:
            raise ValueError(f"{path}: no run.json here or below; give run directories or a sweep's directory")
        found.extend(run for run in here if run not in found)
    return found


def truncation(run: StoredRun) -> str | None:
    """What is missing from a finished run, or None."""
    expected = {metric: _expected(entry) for metric, entry in run.node("estimates").items()}
    for metric, count in expected.items():
        held = len(run.scores.get(metric, ()))
        if count is not None and held != count:
            return f"truncated: run.json counts {count} scores of {metric}, scores.jsonl holds {held}"
    scored = {example for column in run.scores.values() for example in column}
    if not scored:
        return "it has no scores"
    stated = run.info.get("num_examples", len(scored))
    if stated != len(scored):
        return f"truncated: run.json counts {stated} examples, scores.jsonl holds {len(scored)}"
    whole = not run.info.get("subset")
    if run.records and (not scored <= set(run.examples) or (whole and len(scored) != len(run.examples))):
        return f"truncated: {len(scored)} examples are scored, generations.jsonl holds {len(run.examples)}"
    return _disagreement(run)


def _disagreement(run: StoredRun) -> str | None:
    """Whether an estimate in run.json is not the mean of the scores beside it."""
    for metric, entry in run.node("estimates").items():
        values = [value for value in run.scores.get(metric, {}).values() if value is not None]
        if values and entry.get("value") is not None:
            mean = sum(values) / len(values)
            if not math.isclose(mean, entry["value"], rel_tol=1e-6, abs_tol=1e-9):
                return f"scores were changed: run.json says {metric} = {entry['value']:g}, scores.jsonl gives {mean:g}"
    return None


def missing_steering(run: StoredRun) -> str | None:
    """Why the run's receipt does not prove that the model was steered, or None if it does or need not."""
    receipt = run.info.get("receipt")
    if receipt is None:
        return "no receipt: nothing proves that the model was steered" if _should_steer(run) else None
    hit = receipt.get("sites_hit", receipt.get("sites"))
    if not hit:
        return "not steered: the receipt shows that no site was reached"
    changes = [site.get("relative_change") or 0.0 for site in (receipt.get("sites") or {}).values()]
    if changes and not any(change > 0 for change in changes):
        return f"not steered: hidden states did not change at any of {len(changes)} sites"
    return None


def _should_steer(run: StoredRun) -> bool:
    searched = any(row.get("parameters") for row in run.records)
    return searched and run.label("control") not in UNSTEERED_CONTROLS


def _expected(entry: Mapping[str, Any]) -> int | None:
    scored, unscored = entry.get("num_scored"), entry.get("num_unscored")
    return None if scored is None or unscored is None else scored + unscored


def _bound(value: float | str | None, sign: int) -> float:
    return sign * math.inf if value is None else float(value)
