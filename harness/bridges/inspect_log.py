"""Inspect's logs (``.eval``, ``.json``), read as records and scores of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.scorer import value_to_float

from harness.bridges.sampled import Sampled
from harness.data import Example
from harness.scoring import Generation, Record

_GRADES = frozenset("CIPN")
"""Correct, incorrect, partly correct, no answer: texts that Inspect reads as numbers."""


def read_inspect(file: Path) -> Sampled:
    """One log. Inspect says no directions: higher counts as better until somebody says otherwise.

    Raises:
        ValueError: it cannot be read, the evaluation did not end well, or nothing in it is a number.
    """
    try:
        log = read_eval_log(str(file), resolve_attachments=True)
    except Exception as error:  # whatever its reader stumbles over
        raise ValueError(f"{file} cannot be read as a log of Inspect: {error}") from error
    if log.status != "success" or not log.samples:
        raise ValueError(f"{file}: the evaluation's status is {log.status}, with {len(log.samples or [])} samples")

    items = [(_record(sample, several=(log.eval.config.epochs or 1) > 1), sample) for sample in log.samples]
    values: dict[str, dict[str, float | None]] = {}
    for record, sample in items:
        for name, value in _scores(sample).items():
            values.setdefault(name, {})[record.example.id] = value
    usable = {name: column for name, column in values.items() if any(v is not None for v in column.values())}
    if not usable:
        raise ValueError(f"{file} has no score that is a number")

    is_steered = "steer" in log.eval.model_args
    return Sampled(
        origin=str(file),
        tool="inspect",
        task=log.eval.task,
        model=log.eval.model,
        identity=_identity(log),
        settings={"task_version": log.eval.task_version},
        records=tuple(record for record, _ in items),
        values=usable,
        directions=dict.fromkeys(usable, True),
        left_out=dict.fromkeys(values.keys() - usable.keys(), "its items have no numbers"),
        steering=str(log.eval.model_args["steer"]) if is_steered else None,
    )


def _identity(log: EvalLog) -> str:
    """The model's name with what it was loaded with; what steers it is no part of its weights."""
    loaded_with = {name: value for name, value in sorted(log.eval.model_args.items()) if name != "steer"}
    return f"{log.eval.model} {loaded_with}" if loaded_with else log.eval.model


def _record(sample: EvalSample, *, several: bool) -> Record:
    """One answer; the epochs of an item belong together."""
    name = f"{sample.id}~{sample.epoch}" if several else str(sample.id)
    asked = sample.input if isinstance(sample.input, str) else "\n\n".join(message.text for message in sample.input)
    targets = [sample.target] if isinstance(sample.target, str) else list(sample.target)
    cluster = str(sample.id) if several else ""
    example = Example(name, asked, targets[0] if targets else "", tuple(targets[1:]), cluster=cluster)
    return Record(example, Generation(name, {}, sample.output.completion, (), "stop"), asked)


def _scores(sample: EvalSample) -> dict[str, float | None]:
    """Every value by its scorer's name; a scorer of several values gives one for each."""
    scores: dict[str, float | None] = {}
    for scorer, score in (sample.scores or {}).items():
        if isinstance(score.value, dict):
            scores |= {f"{scorer}.{name}": _number(value) for name, value in score.value.items()}
        else:
            scores[scorer] = _number(score.value)
    return scores


def _number(value: Any) -> float | None:
    """The value as Inspect turns it into a number; None for what it would count as 0 for want of one."""
    if isinstance(value, str) and value not in _GRADES:
        return None
    number = float(value_to_float()(value)) if isinstance(value, str | int | float) else math.nan
    return number if math.isfinite(number) else None
