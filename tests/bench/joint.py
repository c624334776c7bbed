"""What one product gains where a model makes several from the same states, and what one call for a norm would gain."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.ours import engine
from bench.report import grid
from bench.suite import Models
from bench.timing import Stopwatch, Timing, median
from bench.work import Work
from harness.steering import Intervention
from harness.subject import packing
from harness.subject.packing import SAME_STATES, SMALLEST, JointLinear, JointProduct, PackedLinear

ROWS = (1, 8, 64, 256)
ENGINE_ROWS = (1, 8, 64)


def same_states(model: nn.Module) -> list[list[Any]]:
    """Every group of linear layers in a model that multiply the same states."""
    children = [dict(module.named_children()) for module in model.modules()]
    return [[here[name] for name in group] for here in children for group in SAME_STATES if here.keys() >= set(group)]


def joint(layers: Sequence[nn.Linear]) -> list[JointLinear]:
    """The same layers with one product."""
    product = JointProduct(layers)
    return [JointLinear(layer, product, index) for index, layer in enumerate(layers)]


def measure(models: Models, repeats: int) -> dict[str, Any]:
    """Time one step's products and norms in both forms, taking turns; medians.

    Raises:
        ValueError: the model has no layers of these names, or they are not on the CPU.
    """
    model, watch = models.plain().model, models.watch
    groups = same_states(model)
    norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    if not groups or not norms or watch.device.type != "cpu":
        raise ValueError("--joint needs a model of Llama's or Qwen's kind on the CPU, by the names of its layers")
    ways_of_products = {
        "apart": [_alone(layer) for group in groups for layer in group],
        "joint": [layer for group in groups for layer in joint(group)],
    }

    figures = {}
    with torch.inference_mode():
        for rows in ROWS:
            states = torch.randn(rows, 1, groups[0][0].in_features, dtype=groups[0][0].weight.dtype)
            ways = _ways(ways_of_products, norms, states)
            seconds = _in_turns(ways, repeats, watch)
            largest = max((one(states) - fused_norm(one, states)).abs().max().item() for one in norms)
            figures[str(rows)] = seconds | {"largest_difference_of_norms": largest}
    return figures


def measure_engine(models: Models, rows: Sequence[int], new_tokens: int, repeats: int) -> dict[str, Any]:
    """Un-steered decoding with products apart and joint, taking turns: medians, and how many rows differ in a token."""
    with mock.patch.object(packing, "SAME_STATES", ()):
        apart = Models(models.config, models.clock, scores=False)
        apart.subject()
    networks = {"apart": apart.subject().network, "joint": models.subject().network}

    figures = {}
    for number in rows:
        work = Work.of(models.plain(), number, new_tokens)
        timings: dict[str, list[Timing]] = {name: [] for name in networks}
        for _ in range(repeats + 1):
            for name, network in networks.items():
                timings[name].append(engine(network, work, Intervention(), models.watch, score=False))
        counted = {name: each[1:] for name, each in timings.items()}  # the first turn warms up

        texts = zip(*(each[-1].completions for each in timings.values()), strict=True)
        figures[str(number)] = {
            "prefill": {name: median(each, lambda one: one.prefill) for name, each in counted.items()},
            "decode": {name: median(each, lambda one: one.decode) for name, each in counted.items()},
            "rows_that_differ": sum(one != other for one, other in texts),
        }
    return figures


def engine_table(figures: dict[str, Any]) -> str:
    """One row per number of rows."""
    lines = []
    for number, one in figures.items():
        cells = []
        for part in ("prefill", "decode"):
            apart, joined = one[part]["apart"], one[part]["joint"]
            cells += [f"{apart:.2f}", f"{joined:.2f}", f"{joined / apart:.3f}"]
        lines.append([number, *cells, str(one["rows_that_differ"])])
    parts = ["prefill apart s", "joint s", "ratio", "decode apart s", "joint s", "ratio"]
    return grid(["rows", *parts, "rows that differ"], lines)


def _alone(layer: nn.Linear) -> nn.Linear:
    """The layer as the engine would hold it if it shared its states with no other."""
    return PackedLinear(layer) if layer.weight.numel() >= SMALLEST else layer


def _ways(
    ways_of_products: dict[str, list[nn.Module]], norms: Sequence[nn.Module], states: Tensor
) -> dict[str, Callable[[], None]]:
    def products(layers: Sequence[nn.Module]) -> Callable[[], None]:
        def run() -> None:
            for layer in layers:
                layer(states)

        return run

    def norms_as_they_are() -> None:
        for norm in norms:
            norm(states)

    def norms_fused() -> None:
        for norm in norms:
            fused_norm(norm, states)

    run_products = {name: products(layers) for name, layers in ways_of_products.items()}
    return run_products | {"norms": norms_as_they_are, "fused_norms": norms_fused}


def fused_norm(norm: nn.Module, states: Tensor) -> Tensor:
    """Torch's own root-mean-square norm with a module's weight, which is what Llama's and Qwen's compute."""
    weight: Any = norm.weight
    epsilon: Any = norm.variance_epsilon
    return nn.functional.rms_norm(states, weight.shape, weight, epsilon)


def _in_turns(ways: dict[str, Callable[[], None]], repeats: int, watch: Stopwatch) -> dict[str, float]:
    """Median seconds of each way; all are run once before, and then take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            start = watch.now()
            run()
            if turn:
                seconds[name].append(watch.now() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def table(figures: dict[str, Any]) -> str:
    """One row per number of rows."""
    rows = [
        [
            number,
            *(f"{1000 * one[name]:.2f}" for name in ("apart", "joint")),
            f"{one['joint'] / one['apart']:.3f}",
            *(f"{1000 * one[name]:.2f}" for name in ("norms", "fused_norms")),
            f"{one['largest_difference_of_norms']:.1g}",
        ]
        for number, one in figures.items()
    ]
    return grid(["rows", "apart ms", "joint ms", "joint/apart", "norms ms", "fused norms ms", "norms differ by"], rows)
