"""What other evaluation harnesses write about each item, read as records and scores of ours. Loads none of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data import Example, Parameters
from harness.records.lines import read_json
from harness.scoring import Evaluator, Generation, Metric, Record, Score, Tools

UNNAMED_FILTER = "none"
"""What lm-evaluation-harness calls the absence of a filter."""


@dataclass(frozen=True)
class Sampled:
    """One task as one model answered it.

    Args:
        origin: the file, for messages.
        tool: which evaluation harness wrote it.
        task: the task's name there.
        model: what the model is called there.
        identity: names the exact weights, as far as the file does.
        settings: of the scoring; files that differ in one of them are not compared.
        records: items with what was written, in file order.
        values: scores by metric and example id; None where an item has none.
        directions: whether higher is better, by metric.
        left_out: why a metric that stands in the file is not among them, by its name.
        steering: the method's label where the file says that the model was steered; "" where it says it was not; None
            where it says nothing.
        access: what the method was shown besides the question, where the file says so.
    """

    origin: str
    tool: str
    task: str
    model: str
    identity: str
    settings: Mapping[str, Any]
    records: tuple[Record, ...]
    values: Mapping[str, Mapping[str, float | None]]
    directions: Mapping[str, bool]
    left_out: Mapping[str, str] = field(default_factory=dict)
    steering: str | None = None
    access: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Reported(Evaluator):
    """Scores as another evaluation harness gave them: looked up, not computed.

    Args:
        declared: the metrics.
        values: scores by metric and example id.
    """

    declared: tuple[Metric, ...]
    values: Mapping[str, Mapping[str, float | None]]

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """The metrics of the file, in its order."""
        return self.declared

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """One score per record and metric."""
        return [
            Score(record.example.id, metric.name, value, "" if value is not None else "no number in the file")
            for metric in self.declared
            for record in records
            for value in [self.values[metric.name].get(record.example.id)]
        ]


def read_lm_eval(file: Path) -> Sampled:
    """A ``samples_TASK_DATE.jsonl`` of lm-evaluation-harness, with the results that it wrote beside it.

    Metrics whose items have no number, or that are no mean over items, are left out: nothing of them can be paired.

    Raises:
        ValueError: it is no such file, its results are missing, or it has no metric that can be used.
    """
    task, _, date = file.stem.removeprefix("samples_").rpartition("_")
    results = _results(file, date)
    config = results.get("config") or {}
    samples = _lines(file)
    values, left_out, directions = _metrics(samples, task, results, file)

    steering: Mapping[str, Any] | None = config.get("steering")
    output_type = (results.get("configs") or {}).get(task, {}).get("output_type", "")
    parameters = dict(steering["parameters"]) if steering else {}
    by_id = {_id_of(sample): sample for sample in samples}  # several filters write one line each
    records = tuple(_record(name, sample, output_type, parameters) for name, sample in by_id.items())

    is_ours = "steering" in config
    model = str(config["model"] if is_ours else results.get("model_name") or config.get("model") or "")
    return Sampled(
        origin=str(file),
        tool="lm_eval",
        task=task,
        model=model,
        identity=str(config.get("model_identity") or f"{model} {config.get('model_sha', '')}".strip()),
        settings={
            "task_version": (results.get("versions") or {}).get(task),
            "num_fewshot": (results.get("n-shot") or {}).get(task),
        },
        records=records,
        values=values,
        directions=directions,
        left_out=left_out,
        steering=(steering["method"] if steering else "") if is_ours else None,
        access=(tuple(steering["access"]) if steering else ()) if is_ours else None,
    )


def _results(file: Path, date: str) -> dict[str, Any]:
    """What lm-evaluation-harness wrote beside the samples of the same moment."""
    beside = sorted(file.parent.glob(f"*_{date}.json")) if date else []
    content = read_json(beside[0]) if len(beside) == 1 else None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file}: there must be one results_{date or 'DATE'}.json beside it, as lm-evaluation-harness writes it "
            "with --output_path and --log_samples; it says which metrics are better when higher"
        )
    return content


def _lines(file: Path) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            sample = json.loads(line)
            missing = [name for name in ("doc_id", "doc_hash", "metrics", "arguments") if name not in sample]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: line {number} is not JSON ({error})") from error
        if missing:
            raise ValueError(f"{file}: line {number} is no sample of lm-evaluation-harness: it has no {missing[0]}")
        samples.append(sample)
    if not samples:
        raise ValueError(f"{file} holds no samples")
    return samples


def _id_of(sample: Mapping[str, Any]) -> str:
    """The same for the same document at the same place, whatever wrote it."""
    return f"doc-{sample['doc_id']}-{str(sample['doc_hash'])[:12]}"


def _metrics(
    samples: Sequence[Mapping[str, Any]], task: str, results: Mapping[str, Any], file: Path
) -> tuple[dict[str, dict[str, float | None]], dict[str, str], dict[str, bool]]:
    """Scores by metric and example id, why other metrics were left out, and directions."""
    directions_known = (results.get("higher_is_better") or {}).get(task) or {}
    listed = (results.get("configs") or {}).get(task, {}).get("metric_list") or []
    aggregations = {entry.get("metric"): entry.get("aggregation", "mean") for entry in listed}
    values: dict[str, dict[str, float | None]] = {}
    directions: dict[str, bool] = {}
    left_out: dict[str, str] = {}

    for sample in samples:
        kept_by = sample.get("filter", UNNAMED_FILTER)
        for metric in sample["metrics"]:
            name = metric if kept_by == UNNAMED_FILTER else f"{metric},{kept_by}"
            value, higher = sample.get(metric), directions_known.get(metric)
            if not isinstance(value, int | float):
                left_out[name] = "its items have no numbers"
            elif aggregations.get(metric, "mean") != "mean":
                left_out[name] = f"it is no mean over items but {aggregations[metric]}"
            elif not isinstance(higher, bool):
                left_out[name] = "the results do not say whether higher is better"
            else:
                directions[name] = higher
                values.setdefault(name, {})[_id_of(sample)] = float(value) if math.isfinite(value) else None

    usable = {name: column for name, column in values.items() if name not in left_out}
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it names none"
        raise ValueError(f"{file} has no metric that can be compared item by item ({reasons})")
    return usable, left_out, directions


def _record(name: str, sample: Mapping[str, Any], output_type: str, parameters: Parameters) -> Record:
    requests = list(sample["arguments"].values())
    prompt = str(requests[0].get("arg_0", "")) if requests else ""
    text = _text(sample.get("filtered_resps") or [], requests, output_type)
    example = Example(name, prompt, str(sample.get("target", "")))
    return Record(example, Generation(name, dict(parameters), text, (), "stop"), prompt)


def _text(responses: Sequence[Any], requests: Sequence[Mapping[str, Any]], output_type: str) -> str:
    """What was written, or the likeliest option; "" where the model only read."""
    if output_type == "generate_until" and responses:
        return responses[0] if isinstance(responses[0], str) else json.dumps(responses[0], ensure_ascii=False)
    if output_type == "multiple_choice" and responses:
        options = zip(responses, requests, strict=False)  # some tasks ask for more likelihoods than there are options
        _, likeliest = max(options, key=lambda option: float(option[0][0]))
        return str(likeliest.get("arg_1", ""))
    return ""
