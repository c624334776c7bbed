"""``python -m harness.bench``: how fast steering is here, in other ways, and at best.

The plain tables (``--ways``, ``--batching``, ``--memory``) need torch and transformers alone, so that they run on a
machine that has nothing else. The others go through the harness's own configuration and import it when asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench import batching, gpu, report
from bench.memory import peak_memory
from bench.suite import WAYS, Models, side_by_side
from bench.work import Work, model_config, model_overrides
from harness.commands.parser import OneLineParser
from harness.subject.load import resolve

if TYPE_CHECKING:
    from bench.jobs import Jobs


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    what = "How fast steering is here, in other ways, and at best."
    parser = OneLineParser(prog="python -m harness.bench", description=what)
    parser.add_argument("--model", default="smollm2", help="a YAML in conf/model, a folder or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--dtype", help="float32 or bfloat16; the model's own setting if left out")
    parser.add_argument("--batch", type=_positive, nargs="+", help="rows at once; 64 and 128, with --gpu 1024")
    parser.add_argument("--new-tokens", type=_positive, default=100)
    parser.add_argument("--repeats", type=_positive, default=3)
    parser.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="all cores if left out")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1, on busy machines"
    )
    parser.add_argument("--no-scoring", action="store_true", help="leave out the log-likelihood of completions")
    parser.add_argument("--singles", type=_positive, default=1, help="trials of the ways that take one at a time")
    parser.add_argument("--write-work", type=Path, help="only write the work down, for tests/bench/libraries.py")
    parser.add_argument("--output", type=Path, help="JSON file to write")

    _add_tables(parser)
    options = parser.parse_args(argv)

    if options.batch is None:
        options.batch = [1024] if options.gpu else [64, 128]
    if options.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the first one belongs to the prompt's pass")
    if not asked_tables(options):
        options.ways = list(WAYS)
    return options


def _add_tables(parser: argparse.ArgumentParser) -> None:
    tables = parser.add_argument_group("tables", "any of them; --ways if none is asked for")
    ways = "; ".join(f"{name}: {label}" for name, label in WAYS.items())
    told = f"steered and un-steered decoding, all if bare. {ways}"
    tables.add_argument("--ways", nargs="*", choices=tuple(WAYS), metavar="WAY", help=told)

    tables.add_argument(
        "--methods", nargs="*", metavar="NAME", help="cost of steering with these choices of conf/method, all if bare"
    )
    told = "overrides: for --training; for --methods, in place of sentiment (learnt from) and facts (decoded)"
    tables.add_argument("--task", nargs="+", default=[], metavar="OVERRIDE", help=told)
    tables.add_argument("--growth", action="store_true", help="time against prompts, trials, layers, tokens, strengths")
    tables.add_argument(
        "--search",
        type=_positive,
        nargs=3,
        metavar=("PROMPTS", "TRIALS", "NEW_TOKENS"),
        help="a whole search per prompt, and what its time goes to",
    )
    tables.add_argument("--batching", type=_positive, metavar="ROWS", help="rows that differ between batch sizes")
    tables.add_argument("--judging", type=_positive, metavar="ANSWERS", help="gradings per second of judge=local")
    tables.add_argument(
        "--training",
        type=_positive,
        nargs=2,
        metavar=("CONCEPTS", "TEXTS"),
        help="seconds per concept of learning so many, from so many wanted texts each; --task names the data",
    )
    tables.add_argument("--joint", action="store_true", help="products of the same states, apart and joint; norms")

    tables.add_argument("--gpu", action="store_true", help="the engine on a GPU, with random weights; see --shapes")
    tables.add_argument("--shapes", nargs="+", choices=tuple(gpu.SHAPES), default=gpu.LARGE, help="models for --gpu")
    tables.add_argument("--minutes", type=float, default=8.0, help="time for --gpu in all")
    tables.add_argument("--no-compile", action="store_true", help="leave compiled decoding out of --gpu")
    tables.add_argument("--memory", action="store_true", help="peak memory of 64 rows x 128 tokens")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print tables, write JSON after each of them; exit status 2 and one line if something was wrong."""
    options = arguments(argv)
    try:
        _check(options)
        return _run(options)
    except (ValueError, OSError, LookupError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError or OSError for what would show only after work: places to write, names of models and methods."""
    for option in ("output", "write_work"):
        path: Path | None = getattr(options, option)
        if path is not None:
            path.open("a", encoding="utf-8").close()
    if not options.gpu:
        resolve(model_config(options.model, options.device, options.dtype))
    if options.methods:
        from bench.methods import method_names

        for name in options.methods:
            if name not in method_names():
                raise ValueError(f"--methods {name} does not exist; choose from {', '.join(method_names())}")


def _run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    models = Models(model_config(options.model, options.device, options.dtype), options.clock, not options.no_scoring)
    if options.write_work is not None:
        work = Work.of(models.plain(), options.batch[0], options.new_tokens)
        options.write_work.write_text(json.dumps(work.plain()), encoding="utf-8")
        return 0

    result: dict[str, Any] = {
        "settings": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "machine": report.machine(str(models.watch.device)),
    }
    _say(json.dumps(result["machine"]))

    for name in asked_tables(options):
        try:
            result[name] = TABLES[name](options, models)
        except gpu.NoGpuError as error:
            raise SystemExit(f"--{name}: {error}") from error
        except ModuleNotFoundError as error:
            raise SystemExit(f"--{name} needs the harness with all of its dependencies: {error}") from error
        if options.output is not None:
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _ways(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    figures_by_batch = {}
    for rows in options.batch:
        work = Work.of(models.plain(), rows, options.new_tokens)
        names, singles = options.ways or list(WAYS), min(options.singles, rows)

        timings = side_by_side(names, models, work, options.repeats, singles, _say)
        figures_by_batch[str(rows)] = report.figures(timings, options.new_tokens)
        _show(f"{rows} rows x {options.new_tokens} new tokens", report.table(figures_by_batch[str(rows)]))
    return figures_by_batch


def _jobs(options: argparse.Namespace, models: Models) -> Jobs:
    from bench.jobs import Jobs

    return Jobs(models, model_overrides(options.model, options.device, options.dtype))


def _methods(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    from bench import methods

    rows, names = options.batch[0], options.methods or methods.method_names()
    jobs = _jobs(options, models)
    timed, failed = methods.side_by_side(jobs, names, rows, options.new_tokens, options.repeats, _say, options.task)

    figures = methods.figures(timed, failed, options.new_tokens)
    _show(f"{rows} rows x {options.new_tokens} new tokens with each method", methods.table(figures))
    return figures


def _growth(options: argparse.Namespace, models: Models) -> list[dict[str, Any]]:
    from bench import growth

    layers = models.subject().layout.num_layers
    base, factors = growth.usual_base(layers), growth.usual_factors(layers)
    timings = growth.measure(_jobs(options, models), base, factors, options.repeats, _say)

    figures = growth.figures(timings, base, factors)
    _show(f"Segmented steering, {growth.AT_ONCE} rows at once, one factor changed at a time", growth.table(figures))
    return figures


def _search(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    from bench import search

    figures = search.measure(_jobs(options, models), *options.search)
    _show(f"Search per prompt, at most {figures['new_tokens']} new tokens", search.table(figures))
    return figures


def _batching(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    figures = batching.measure(models, options.batching, options.new_tokens)
    _show("Batches of different sizes", batching.table(figures))
    return figures


def _judging(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    from bench import judging

    figures = judging.measure(models.config, options.judging, models.watch)
    _show(f"{figures['gradings']} gradings by this model as a judge", judging.table(figures))
    return figures


def _training(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    from bench import training

    jobs = _jobs(options, models)
    figures = training.measure(jobs, *options.training, options.repeats, options.task, _say)
    _show(f"Learning {figures['concepts']} concepts from {figures['texts']} texts", training.table(figures))
    return figures


def _joint(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    from bench import joint

    figures = joint.measure(models, options.repeats)
    _show("Products and norms of one step", joint.table(figures))
    decoding = joint.measure_engine(models, joint.ENGINE_ROWS, options.new_tokens, options.repeats)
    _show(f"Un-steered, {options.new_tokens} new tokens", joint.engine_table(decoding))
    return {"step": figures, "engine": decoding}


def _memory(options: argparse.Namespace, _models: Models) -> dict[str, Any]:
    figures = peak_memory(options.model, options.device, options.dtype, 64, 128, options.threads)
    weights, peak = (figures[name] / 2**30 for name in ("weights_bytes", "peak_bytes"))
    _show("Memory", f"64 rows x 128 tokens: peak {peak:.2f} GiB, weights {weights:.2f} GiB")
    return figures


def _gpu(options: argparse.Namespace, _models: Models) -> dict[str, Any]:
    minutes = options.minutes / (len(options.shapes) * len(options.batch))
    dtype = getattr(torch, options.dtype or "bfloat16")
    figures: dict[str, Any] = {}
    for rows in options.batch:
        bench = gpu.Bench(
            gpu.chosen_device(options.device),
            rows,
            options.new_tokens,
            options.repeats,
            not options.no_compile,
            minutes,
            _say,
        )

        for shape in options.shapes:
            figures[f"{shape}, {rows} rows"] = bench.shape(shape, dtype)
            _show(
                f"{shape}, {rows} rows x {options.new_tokens} new tokens", gpu.table(figures[f"{shape}, {rows} rows"])
            )
    return figures


TABLES: Mapping[str, Callable[[argparse.Namespace, Models], Any]] = {
    "ways": _ways,
    "methods": _methods,
    "growth": _growth,
    "search": _search,
    "batching": _batching,
    "judging": _judging,
    "training": _training,
    "joint": _joint,
    "gpu": _gpu,
    "memory": _memory,
}


def asked_tables(options: argparse.Namespace) -> list[str]:
    """The tables that were asked for; an option without its names asks for all of them."""
    return [name for name in TABLES if getattr(options, name) not in (None, False)]


def _show(title: str, text: str) -> None:
    print(f"\n{title}\n\n{text}\n", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
