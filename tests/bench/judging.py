"""Gradings per second of the local judge: all in one call, where they share the prompt's beginning, and one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import grid
from bench.timing import Stopwatch
from harness.judges.agreement import load_items
from harness.judges.local import LocalJudge
from harness.scoring import Grading, Verdict
from harness.subject.load import ModelConfig, device_of

WAYS = {"together": "in one call, 16 per pass", "singly": "one call for each"}


def measure(config: ModelConfig, count: int, watch: Stopwatch | None = None) -> dict[str, Any]:
    """Grade the first labelled answers of the calibration set's open part in both ways.

    Returns:
        Seconds and gradings per second of each way, how many got no label, and how many labels differ.
    """
    watch = watch or Stopwatch(device_of(config))
    gradings = [item.grading("simpleqa") for item in load_items("open")[: count + 1]]
    figures: dict[str, Any] = {"gradings": len(gradings) - 1}
    labels = {}
    for name in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            judge = LocalJudge(model=config, cache=str(Path(folder) / "replies.sqlite"))
            judge.grade(gradings[:1])  # loads the model
            start = watch.now()
            verdicts = _graded(judge, gradings[1:], singly=name == "singly")
            seconds = watch.now() - start
        labels[name] = [verdict.value for verdict in verdicts]
        figures[name] = {"seconds": seconds, "gradings_per_second": figures["gradings"] / seconds}
    figures["unscored"] = sum(label is None for column in labels.values() for label in column)
    figures["labels_that_differ"] = sum(one != other for one, other in zip(*labels.values(), strict=True))
    return figures


def _graded(judge: LocalJudge, gradings: Sequence[Grading], *, singly: bool) -> list[Verdict]:
    return [judge.grade([grading])[0] for grading in gradings] if singly else judge.grade(gradings)


def table(figures: dict[str, Any]) -> str:
    """One row per way."""
    rows = [
        [label, f"{figures[name]['seconds']:.1f}", f"{figures[name]['gradings_per_second']:.2f}"]
        for name, label in WAYS.items()
    ]
    text = grid(["way", "s", "gradings/s"], rows)
    differ = f"{figures['labels_that_differ']} of {figures['gradings']} labels differ"
    return f"{text}\n\n{differ}" + (f"; {figures['unscored']} were not to be had" if figures["unscored"] else "")
