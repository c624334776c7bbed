"""Writes run directories of the real format, with seeded texts and scores, for the tests of the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.statistics import estimate
from harness.types import Metric

TOPICS = ("Geography", "Science", "Art", "History")
ANSWER_TYPES = ("Person", "Place", "Date", "Number", "Other")
METRICS = {
    "token_overlap": [Metric("overlap", True, 0.0, 1.0)],
    "simpleqa_rubric": [
        Metric("correct", True, 0.0, 1.0, "proportion"),
        Metric("incorrect", False, 0.0, 1.0, "proportion"),
    ],
    "perplexity": [Metric("perplexity", False, 1.0, float("inf")), Metric("repetition", False, 0.0, 1.0)],
}


def questions(count: int) -> list[dict[str, Any]]:
    """Examples with a two-word gold answer, a topic and an answer type."""
    return [
        {
            "example_id": f"q{index:03d}",
            "question": f"Who described the {index}th comet over Alder Bay?",
            "answer": f"Mira Quill{index}",
            "aliases": [f"M. Quill{index}"],
            "group": "",
            "metadata": {
                "topic": TOPICS[index % len(TOPICS)],
                "answer_type": ANSWER_TYPES[index % len(ANSWER_TYPES)],
            },
        }
        for index in range(count)
    ]


def write_run(
    directory: Path,
    method: str,
    *,
    search: str = "fixed",
    control: str = "none",
    seed: int = 0,
    count: int = 40,
    skill: float = 0.3,
    strength: float | None = None,
    trials: int = 0,
    oracle: bool = False,
    text: Callable[[int, str], str] | None = None,
    **changes: Any,
) -> Path:
    """Write one finished run and return its directory.

    Args:
        directory: directory of all runs.
        method: label of the method.
        search: label of the search.
        control: label of the control.
        seed: seed of the run; examples are the same for all seeds.
        count: number of examples.
        skill: chance that an answer is right.
        strength: a fixed strength, part of the config.
        trials: trials per example.
        oracle: whether gold answers were seen.
        text: makes the output of an example from its index and the default text.
        **changes: replaces parts of run.json.
    """
    name = "-".join([method, search, control, str(seed), *([f"{strength:g}"] if strength is not None else [])])
    mark = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng(mark)
    difficulty = np.random.default_rng(7).normal(size=count)
    luck = 0.8 * difficulty + 0.6 * rng.normal(size=count)
    right = luck < np.quantile(np.random.default_rng(8).normal(size=20_000), skill)
    examples = questions(count)
    outputs = [_output(example, bool(hit), rng) for example, hit in zip(examples, right, strict=True)]
    if text is not None:
        outputs = [text(index, output) for index, output in enumerate(outputs)]
    parameters = [_parameters(method, rng, strength) if trials or strength else {} for _ in examples]
    scores = _scores(examples, outputs, right, rng)
    run = directory / name
    key = f"{mark:08x}"
    info = _info(name, key, locals()) | changes
    _write_lines(run / "scores.jsonl", scores)
    (run / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    records = _records(examples, outputs, parameters)
    _write_lines(directory / "generations" / key / "generations.jsonl", records)
    if trials:
        _write_lines(directory / "generations" / key / "trials.jsonl", _trials(examples, trials, rng, skill))
    return run


def _output(example: Mapping[str, Any], right: bool, rng: np.random.Generator) -> str:
    if right:
        return f"It was {example['answer']}, who saw it from the northern shore."
    if rng.random() < 0.15:
        return "the the comet the the comet " * 8
    return f"It was Mira {rng.choice(['Sand', 'Holt', 'Fenn'])}, who wrote about the tide."


def _parameters(method: str, rng: np.random.Generator, strength: float | None) -> dict[str, float]:
    if strength is not None:
        return {"strength": strength}
    names = ("early", "middle", "late") if method == "segmented" else ("strength",)
    return {name: float(10 ** rng.uniform(-2.5, -0.7)) for name in names}


def _scores(
    examples: Sequence[Mapping[str, Any]], outputs: Sequence[str], right: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for example, output, hit in zip(examples, outputs, right, strict=True):
        values = {
            "overlap": 1.0 if hit else 0.5 if "Mira" in output else 0.0,
            "correct": float(hit),
            "incorrect": float(not hit),
            "perplexity": float(np.exp(rng.normal(3.2, 0.5))),
            "repetition": 0.8 if "the the" in output else 0.02,
        }
        rows.extend(
            {
                "example_id": example["example_id"],
                "metric": metric,
                "value": value,
                "reason": "",
                "details": _details(metric),
            }
            for metric, value in values.items()
        )
    return rows


def _details(metric: str) -> dict[str, Any]:
    return {"judge": "match@1"} if metric in ("correct", "incorrect") else {}


def _records(
    examples: Sequence[Mapping[str, Any]], outputs: Sequence[str], parameters: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    return [
        {
            **example,
            "prompt": f"Q: {example['question']}\nA:",
            "parameters": chosen,
            "text": output,
            "token_ids": [1, 2, 3],
            "finish": "stop",
            "near_ties": 0,
            "choice_logprobs": [],
        }
        for example, output, chosen in zip(examples, outputs, parameters, strict=True)
    ]


def _trials(
    examples: Sequence[Mapping[str, Any]], count: int, rng: np.random.Generator, skill: float
) -> list[dict[str, Any]]:
    return [
        {
            "example_id": example["example_id"],
            "generation": trial // 4,
            "trial": trial,
            "parameters": {"strength": float(10 ** rng.uniform(-2.5, -0.7))},
            "objective": float(rng.normal(skill, 0.2)),
            "text": "a trial",
            "finish": "stop",
            "terms": {},
        }
        for example in examples
        for trial in range(count)
    ]


def _info(name: str, key: str, made: Mapping[str, Any]) -> dict[str, Any]:
    method, search, control, oracle = (made[part] for part in ("method", "search", "control", "oracle"))
    strength = {} if made["strength"] is None else {"strength": made["strength"]}
    steers = method not in ("baseline", "prompting") and control not in ("best_of_n", "gold_in_prompt")
    labels = {"method": method, "search": search, "control": control, "task": "facts", "model": "tiny"}
    return {
        "key": key,
        "name": name,
        "status": "done",
        "created": "2025-01-01T00:00:00Z",
        "config": {
            "method": {"_target_": f"methods.{method}", **strength},
            "search": {"kind": search, "num_trials": made["trials"], "seed": made["seed"]},
            "control": {"kind": control},
            "task": {"name": "facts", "subset": None},
            "model": {"name": "tiny"},
            "seed": made["seed"],
        },
        "labels": labels | {"seed": made["seed"]},
        "access": ["gold"] if oracle else [],
        "oracle": oracle,
        "optimised_metrics": ["overlap"] if oracle and made["trials"] else [],
        "evaluators": {
            evaluator: {"version": 1, "metrics": [_metric(metric, evaluator) for metric in metrics]}
            for evaluator, metrics in METRICS.items()
        },
        "estimates": _estimates(made["scores"]),
        "derived": {"f1": 0.31},
        "cost": {
            "forward_tokens": 120_000, "trials": made["trials"] * made["count"], "judge_calls": 0, "judge_cost": 0.0,
            "seconds": 73.5, "peak_memory_bytes": 1_200_000_000,
        },
        "provenance": {
            "commit": "0123abc", "versions": {"torch": "2.13", "transformers": "5.23"}, "device": "cpu",
            "dtype": "float32", "model_identity": "tiny@abc", "task_fingerprint": f"facts-{made['count']}",
            "seed": made["seed"], "command": f"python -m harness method={method} search={search} control={control}",
        },
        "receipt": _receipt() if steers else None,
        "generations": f"../generations/{key}",
        "judge_calibration": None,
        "error": None,
    }  # fmt: skip


def _metric(metric: Metric, evaluator: str) -> dict[str, Any]:
    high = None if metric.high == float("inf") else metric.high
    return {
        "name": metric.name, "higher_is_better": metric.higher_is_better, "low": metric.low, "high": high,
        "kind": metric.kind, "evaluator": evaluator,
    }  # fmt: skip


def _estimates(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for metric in (metric for metrics in METRICS.values() for metric in metrics):
        values = [row["value"] for row in scores if row["metric"] == metric.name]
        found[metric.name] = {k: v for k, v in vars(estimate(metric, values)).items() if k != "metric"}
    return found


def _receipt() -> dict[str, Any]:
    sites = {f"{layer}.block": {"relative_change": 0.04 + 0.01 * layer, "tokens_prompt": 12, "tokens_completion": 20}
             for layer in range(4)}  # fmt: skip
    return {"sites_hit": 4, "sites": sites, "kl_mean": 0.21}


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rewrite(run: Path, **changes: Any) -> None:
    """Replace parts of a written run.json."""
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def write_sweep(directory: Path, count: int = 40, text: Callable[[int, str], str] | None = None) -> list[Path]:
    """A sweep with two deployable methods, two oracles, their controls and a strength curve."""
    options = {"search": "per_prompt", "trials": 16, "oracle": True, "count": count}
    runs = [write_run(directory, "baseline", count=count, skill=0.15), write_run(directory, "prompting", count=count)]
    runs += [
        write_run(directory, "caa", strength=strength, count=count, skill=skill)
        for strength, skill in ((0.5, 0.16), (1.0, 0.2), (2.0, 0.3), (4.0, 0.1))
    ]
    for method, skill in (("full_layer", 0.45), ("segmented", 0.6)):
        runs.append(write_run(directory, method, skill=skill, text=text, **options))
        runs += [
            write_run(directory, method, control=control, skill=chance, **options)
            for control, chance in (("shuffled", 0.2), ("random", 0.18), ("best_of_n", 0.4), ("gold_in_prompt", 0.9))
        ]
    return runs
