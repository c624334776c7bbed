"""``python -m harness.bench``: how fast steering is here, in other ways, and at best."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.bench import report
from harness.bench.memory import peak_memory
from harness.bench.suite import WAYS, Models, distinct_configurations, pool, side_by_side
from harness.bench.timing import Timing, median
from harness.bench.work import Work, model_config

DISTINCT = (1, 16, 64, 256)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description=__doc__)
    ways = "; ".join(f"{name}: {label}" for name, label in WAYS.items())
    parser.add_argument("--model", default="smollm2", help="a YAML in conf/model, a folder or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--dtype", help="float32 or bfloat16; the model's own setting if left out")
    parser.add_argument("--batch", type=_positive, nargs="+", default=[64, 128], help="rows at once")
    parser.add_argument("--new-tokens", type=_positive, default=100)
    parser.add_argument("--repeats", type=_positive, default=3)
    parser.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="all cores if left out")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1, on busy machines"
    )
    parser.add_argument("--no-scoring", action="store_true", help="leave out the log-likelihood of completions")
    parser.add_argument("--singles", type=_positive, default=1, help="trials of the ways that take one at a time")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), metavar="WAY", help=ways)
    parser.add_argument("--distinct", action="store_true", help="also: 1, 16, 64, 256 distinct strengths in a batch")
    parser.add_argument("--memory", action="store_true", help="also: peak memory of 64 rows x 128 tokens")
    parser.add_argument("--pool", type=_positive, nargs=2, metavar=("PROMPTS", "TRIALS"), help="also: a whole search")
    parser.add_argument("--write-work", type=Path, help="only write the work down, for harness/bench/libraries.py")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    found = parser.parse_args(argv)
    if found.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the first one belongs to the prompt's pass")
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print tables, write JSON."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    models = Models(model_config(options.model, options.device, options.dtype), options.clock, not options.no_scoring)
    if options.write_work is not None:
        work = Work.of(models.plain(), options.batch[0], options.new_tokens)
        options.write_work.write_text(json.dumps(work.plain()), encoding="utf-8")
        return 0
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "batches": {},
    }
    result["machine"] = report.machine(str(models.plain().device))
    _say(json.dumps(result["machine"]))
    for rows in options.batch:
        work = Work.of(models.plain(), rows, options.new_tokens)
        timings = side_by_side(options.ways, models, work, options.repeats, min(options.singles, rows), _say)
        result["batches"][rows] = report.figures(timings, options.new_tokens)
        print(
            f"\n{rows} rows x {options.new_tokens} new tokens\n\n{report.table(result['batches'][rows])}\n", flush=True
        )
    _extras(options, models, result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _extras(options: argparse.Namespace, models: Models, result: dict[str, Any]) -> None:
    at_once = options.batch[0]
    if options.distinct:
        found = distinct_configurations(models, max(DISTINCT), at_once, 16, options.repeats, DISTINCT)
        result["distinct"] = {count: median(runs, lambda run: run.generation) for count, runs in found.items()}
        for count, seconds in result["distinct"].items():
            print(f"{max(DISTINCT)} rows x 16 tokens, {count} distinct strengths: {seconds:.2f} s", flush=True)
    if options.pool:
        timing: Timing = pool(models, *options.pool, 64, at_once)
        result["pool"] = {
            "trials": timing.trials,
            "prefill": timing.prefill,
            "decode": timing.decode,
            "scoring": timing.scoring,
        }
        print(f"{timing.trials} trials x 64 tokens: {timing.trials / timing.generation:.2f} trials/s", flush=True)
    if options.memory:
        result["memory"] = peak_memory(options.model, options.device, options.dtype, 64, 128, options.threads)
        weights, peak = (result["memory"][name] / 2**30 for name in ("weights_bytes", "peak_bytes"))
        print(f"64 rows x 128 tokens: peak {peak:.2f} GiB, weights {weights:.2f} GiB", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
