"""Timings as JSON and as tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.suite import WAYS
from bench.timing import Timing, median, ratio

_RATIOS = (
    ("e", "f", "decode", 0.85),
    ("e", "fp", "decode", None),
    ("e", "d", "decode", 0.95),
    ("e", "c", "decode", None),
    ("e", "b", "generation", 12.0),
    ("e", "a", "generation", 40.0),
    ("e", "b", "total", 12.0),
    ("e", "a", "total", 40.0),
    ("e16", "e", "decode", None),
)
"""Way, way to compare with, seconds to compare, and the least that is wanted."""
_MEANING = {"decode": "decoding", "generation": "trials/s", "total": "trials/s with scoring"}


def machine(device: str) -> dict[str, Any]:
    """Where the figures were taken."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def figures(timings: Mapping[str, Sequence[Timing]], new_tokens: int) -> dict[str, Any]:
    """Medians of every way, and the ratios between ways."""
    return {
        "ways": {name: _way_figures(runs, new_tokens) for name, runs in timings.items()},
        "ratios": [
            {"of": of, "over": over, "figure": figure, "value": _ratio(timings, of, over, figure), "wanted": needed}
            for of, over, figure, needed in _RATIOS
            if of in timings and over in timings and (figure != "total" or timings[of][0].scoring > 0)
        ],
        "rows_that_differ": {
            f"{one} from {other}": _share_that_differs(timings[one][0], timings[other][0])
            for one, other in (("d", "c"), ("e", "b"), ("b", "a"), ("e16", "e"))
            if one in timings and other in timings
        },
    }


def _way_figures(runs: Sequence[Timing], new_tokens: int) -> dict[str, Any]:
    trials = runs[0].trials
    return {
        "trials": trials,
        "prefill_seconds": median(runs, lambda run: run.prefill),
        "decode_seconds": median(runs, lambda run: run.decode),
        "scoring_seconds": median(runs, lambda run: run.scoring),
        "decode_tokens_per_second": median(runs, lambda run: run.trials * (new_tokens - 1) / run.decode),
        "trials_per_second": median(runs, lambda run: run.trials / run.generation),
        "trials_per_second_scored": median(runs, lambda run: run.trials / run.total),
        "repeats": [[run.prefill, run.decode, run.scoring] for run in runs],
    }


def _ratio(timings: Mapping[str, Sequence[Timing]], of: str, over: str, figure: str) -> float:
    return ratio(timings[of], timings[over], lambda timing: getattr(timing, figure))


def _share_that_differs(one: Timing, other: Timing) -> float:
    pairs = list(zip(one.completions, other.completions, strict=False))
    return sum(a != b for a, b in pairs) / len(pairs)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first ``texts`` columns stand on the left, numbers on the right."""
    marks = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join([_line(header), f"|{'|'.join(marks)}|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one line per way, then one per ratio."""
    header = ("way", "trials", "prefill s", "decode s", "scoring s", "decoded tokens/s", "trials/s", "with scoring")
    ways = []
    for name, row in result["ways"].items():
        speeds = (row["decode_tokens_per_second"], row["trials_per_second"], row["trials_per_second_scored"])
        seconds = (row["prefill_seconds"], row["decode_seconds"], row["scoring_seconds"])
        cells = [f"({name}) {WAYS[name]}", str(row["trials"]), *(f"{value:.2f}" for value in seconds)]
        ways.append([*cells, f"{speeds[0]:.0f}", *(f"{value:.3g}" for value in speeds[1:])])

    ratios = [
        (
            f"({item['of']}) / ({item['over']})",
            _MEANING[item["figure"]],
            f"{item['value']:.3g}",
            "" if item["wanted"] is None else f"{item['wanted']:g}",
        )
        for item in result["ratios"]
    ]
    differ = [
        f"{share:.1%} of rows of ({pair.replace(' from ', ') differ from (')})"
        for pair, share in result["rows_that_differ"].items()
    ]
    return "\n".join([grid(header, ways), "", grid(("ratio", "what", "value", "wanted"), ratios, 2), "", *differ])
