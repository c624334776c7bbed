"""Steering libraries from PyPI at the bench's work, in an environment of their own.

It imports nothing of the harness, so that it runs wherever the libraries do, also with an older transformers::

    python -m venv .libraries && .libraries/bin/pip install steering-vectors repeng pyvene nnsight 'torch==2.13.*'
    .libraries/bin/python tests/bench/libraries.py --model FOLDER --work WORK.json --output libraries.json

FOLDER holds the model in the hub's format. WORK.json is what ``python -m harness.bench --write-work WORK.json`` writes:
prompts as token ids, a direction per layer, a strength per row.

None of these libraries gives the rows of a batch strengths of their own, so each does what its users do: one row after
the other, with KV cache. A second figure has all rows in one batch with one strength for all: less than what is asked.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

Clock = Callable[[], float]
Generate = Callable[[dict[str, torch.Tensor], float], torch.Tensor]
"""Token ids and mask in, one strength for all rows; whole sequences out."""


def _readable(folder: str) -> Any:
    """The model's configuration as transformers 4 wants it, where it was written by transformers 5."""
    config = AutoConfig.from_pretrained(folder)
    rope = getattr(config, "rope_parameters", None)
    if rope and hasattr(config, "rope_theta"):
        config.rope_theta = rope["rope_theta"]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    return config


class Bench:
    """The model, the work, and the way to call ``generate``."""

    def __init__(self, folder: str, work: dict[str, Any]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, config=_readable(folder), dtype=torch.float32).eval()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.directions = torch.tensor(work["directions"])
        self.prompts, self.strengths, self.new_tokens = work["prompts"], work["strengths"], work["new_tokens"]
        self.options = {"max_new_tokens": self.new_tokens, "do_sample": False, "use_cache": True}

    def inputs(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Left-padded prompts of some rows."""
        longest = max(len(self.prompts[row]) for row in rows)
        padding = [longest - len(self.prompts[row]) for row in rows]
        ids = [[0] * gap + self.prompts[row] for gap, row in zip(padding, rows, strict=True)]
        mask = [[0] * gap + [1] * (longest - gap) for gap in padding]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def plain_hooks(bench: Bench) -> Generate:
    """No library: a forward hook on every block."""

    def generate(inputs: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
        handles = []
        for layer, direction in zip(bench.model.model.layers, bench.directions, strict=True):
            shift = strength * direction
            handles.append(layer.register_forward_hook(lambda _m, _a, out, shift=shift: _shifted(out, shift)))
        try:
            return bench.model.generate(**inputs, **bench.options)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            for handle in handles:
                handle.remove()

    return generate


def _shifted(output: Any, shift: torch.Tensor) -> Any:
    return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift


def steering_vectors(bench: Bench) -> Generate:
    """``SteeringVector.apply`` as a context manager."""
    vector = importlib.import_module("steering_vectors").SteeringVector(dict(enumerate(bench.directions)))

    def generate(inputs: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
        with vector.apply(bench.model, multiplier=strength):
            return bench.model.generate(**inputs, **bench.options)  # pyright: ignore[reportAttributeAccessIssue]

    return generate


def repeng(bench: Bench) -> Generate:
    """``ControlModel.set_control``."""
    library = importlib.import_module("repeng")
    layers = list(range(len(bench.directions)))
    control = library.ControlModel(bench.model, layers)
    vectors = {layer: direction.numpy() for layer, direction in enumerate(bench.directions)}
    vector = library.ControlVector(model_type=bench.model.config.model_type, directions=vectors)

    def generate(inputs: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
        control.set_control(vector, strength)
        try:
            return control.generate(**inputs, **bench.options)
        finally:
            control.reset()

    return generate


def pyvene(bench: Bench) -> Generate:
    """An ``IntervenableModel`` with an addition at every block's output, at every position of every pass."""
    library = importlib.import_module("pyvene")
    strength_now = [0.0]

    def addition(direction: torch.Tensor) -> Callable[[torch.Tensor, Any], torch.Tensor]:
        return lambda base, _source: base + strength_now[0] * direction

    intervenable = library.IntervenableModel(
        [
            {"component": f"model.layers[{layer}].output", "intervention": addition(direction)}
            for layer, direction in enumerate(bench.directions)
        ],
        model=bench.model,
    )

    def generate(inputs: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
        strength_now[0] = strength
        return intervenable.generate(inputs, intervene_on_prompt=True, **bench.options)[1]

    return generate


def nnsight(bench: Bench) -> Generate:
    """A trace of ``generate`` that replaces every block's output in every pass."""
    library = importlib.import_module("nnsight")
    wrapped = library.TransformersModel(bench.model, task="text-generation", tokenizer=bench.tokenizer)
    # With a tokenizer that pads on the left it hands over positions of the prompt, and transformers 4 keeps the last of
    # them for every later token; without, generate counts them itself.
    wrapped.tokenizer.padding_side = "right"

    def generate(inputs: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
        with wrapped.generate(inputs, **bench.options) as tracer:
            for _ in tracer.iter[: bench.new_tokens]:
                for index, direction in enumerate(bench.directions):
                    layer = wrapped.model.layers[index]
                    layer.output = _shifted(layer.output, strength * direction)
            out = tracer.result.save()
        return out

    return generate


WAYS: dict[str, Callable[[Bench], Generate]] = {
    "plain hooks": plain_hooks,
    "steering-vectors": steering_vectors,
    "repeng": repeng,
    "pyvene": pyvene,
    "nnsight": nnsight,
}


def measure(
    make: Callable[[Bench], Generate], bench: Bench, singles: int, repeats: int, clock: Clock, expected: Any
) -> dict[str, Any]:
    """Trials per second one by one and in one batch, and whether all tokens are those of plain hooks."""
    generate = make(bench)
    rows = list(range(len(bench.prompts)))
    batch = bench.inputs(rows)

    generate(bench.inputs([0]), bench.strengths[0])
    alone = [
        _timed(lambda row=row: generate(bench.inputs([row]), bench.strengths[row]), clock) for row in rows[:singles]
    ]
    together = [_timed(lambda: generate(batch, bench.strengths[0]), clock) for _ in range(repeats)]

    tokens = [out[:, -bench.new_tokens :].tolist() for _, out in (*alone, together[0])]
    return {
        "trials_per_second": 1 / statistics.median(seconds for seconds, _ in alone),
        "trials_per_second_one_strength": len(rows) / statistics.median(seconds for seconds, _ in together),
        "tokens_as_plain_hooks": expected is None or tokens == expected,
        "tokens": tokens,
    }


def _timed(call: Callable[[], torch.Tensor], clock: Clock) -> tuple[float, torch.Tensor]:
    start = clock()
    out = call()
    return clock() - start, out


def _table(libraries: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| library | version | trials/s, one by one | trials/s, one batch, one strength | tokens as plain hooks |",
        "|---|---|---:|---:|---|",
    ]
    for name, row in libraries.items():
        if "failed" in row:
            cells = ["", "", row["failed"]]
        else:
            speeds = (row["trials_per_second"], row["trials_per_second_one_strength"])
            cells = [*(f"{speed:.3g}" for speed in speeds), "yes" if row["tokens_as_plain_hooks"] else "no"]
        lines.append(f"| {name} | {row['version'] or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@torch.no_grad()
def main() -> int:
    """Time every library that is installed; one that fails is reported with its error."""
    parser = argparse.ArgumentParser(description="Time steering libraries at the bench's work.")
    parser.add_argument("--model", required=True, help="folder in the hub's format")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--singles", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1, on busy machines"
    )
    parser.add_argument("--libraries", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    work = json.loads(options.work.read_text(encoding="utf-8"))
    report: dict[str, Any] = {"torch": torch.__version__, "transformers": _version("transformers"), "libraries": {}}
    expected = None
    for name in options.libraries:
        try:
            result = measure(WAYS[name], Bench(options.model, work), options.singles, options.repeats, clock, expected)
            expected = expected or result["tokens"]
            result.pop("tokens")
        except Exception as error:  # a library that cannot run here is a line of the table
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}"[:300]}
        report["libraries"][name] = {"version": _version(name)} | result
        print(name, json.dumps(report["libraries"][name]), flush=True)
    print(_table(report["libraries"]))
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
