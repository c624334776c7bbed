"""Fusion Steering: move the mean activation of the prompt towards that of a reference completion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness.types import (
    Access,
    Artifact,
    Carry,
    Edit,
    Example,
    Intervention,
    Layout,
    Method,
    Parameters,
    Range,
    Site,
    Subject,
    Where,
    shared,
)


@dataclass(frozen=True, eq=False)
class MeanShift(Edit):
    """Add ``strength * (reference - mean)`` to every token, the mean being that of the tokens at this site."""

    reference: Float[Tensor, "B D"]
    strength: Float[Tensor, "B"]
    mean: Literal["prompt", "sequence"] = shared(default="prompt")

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """Measure the mean when the pass holds the prompt, and shift every token by the same amount."""
        key = where.key("shift")
        if where.prefill:
            mean = where.mean(h.to(self.reference.dtype), "prompt" if self.mean == "prompt" else "all")
            carry = {**carry, key: (self.strength[:, None] * (self.reference - mean)).to(h.dtype)}
        return where.keep(h + carry[key][:, None], h), carry


@dataclass(frozen=True, kw_only=True)
class FusionSteering(Method):
    """Shift each block's output so that its mean moves towards the mean activation of the gold answer.

    ``h_t + k (reference_l - mean_l)`` at every token t and layer l, with one k per segment of layers, searched for each
    prompt. ``segments`` of one name is the paper's full-layer variant; three names are its segmented variant.

    Source:
        Chang & Yasin 2025, arXiv:2505.22572, and the authors' public notebook. Deviations: (1) ``mean="prompt"``
        (default) takes the mean once, over the prompt, and adds the same shift to later tokens, so that the key/value
        cache stays valid; ``"sequence"`` is the notebook's: the mean of prompt and completion so far, anew at each
        step, without cache. (2) ``parametrization="product"`` (default) searches k = alpha * gamma directly; only that
        product acts. (3) The reference span is exact; the notebook finds the gold's first occurrence anywhere in the
        text and stops one character early. (4) With ``enriched_prompt=None`` the reference is read in the run's own
        prompt, not in the notebook's raw text. (5) ``explanation_tokens=0`` (default) reads the reference over the gold
        answer alone; the notebook adds up to 100 greedy tokens of the model's own explanation.

    Parameters:
        ``k_<segment>`` (product) or ``alpha_<segment>``, ``gamma_<segment>`` (paper): dimensionless, 0 changes
        nothing, 1 moves the mean onto the reference.

    Steers:
        All tokens, block outputs of all layers.

    Requires:
        Nothing to fit; for each prompt its gold answer.

    Access:
        Gold: the result is an oracle's.

    Artifact:
        None. Condition: ``reference`` (E, L, D), one row per example.

    Fidelity:
        Paper formulas only.

    Args:
        segments: bounds ``[low, high]`` of each segment's strength, or a number to fix it, in order of depth; layers
            are split as evenly as possible, earlier segments longer.
        log: search strengths on a logarithmic scale.
        parametrization: see above.
        mean: see above.
        explanation_tokens: length of the explanation that the model itself writes for the gold answer, at most; 0
            leaves it out.
        explanation_prompt: raw text with ``{question}`` and ``{answer}`` that the model continues.
        explanation_marker: keep only what follows this mark, nothing if it is absent; "" keeps everything.
        enriched_prompt: raw text with ``{question}`` before the answer when the reference is read; None takes the
            run's own prompt.
    """

    version: ClassVar[int] = 2
    access: ClassVar[frozenset[Access]] = frozenset({Access.GOLD})
    segments: Mapping[str, Sequence[float] | float] = field(default_factory=lambda: {"all": (0.005, 0.1)})
    log: bool = True
    parametrization: Literal["product", "paper"] = "product"
    mean: Literal["prompt", "sequence"] = "prompt"
    explanation_tokens: int = 0
    explanation_prompt: str = "Question: {question}\nAnswer: {answer}"
    explanation_marker: str = ""
    enriched_prompt: str | None = None

    def check(self, layout: Layout) -> None:
        """Raise ValueError for more segments than layers or bounds that cannot be searched."""
        super().check(layout)
        if not 1 <= len(self.segments) <= layout.num_layers:
            raise ValueError(f"segments must number 1 to {layout.num_layers}, got {len(self.segments)}")
        if self.explanation_tokens < 0:
            raise ValueError(f"explanation_tokens must be 0 or more, got {self.explanation_tokens}")
        for name, value in self.parameters(layout).items():
            if isinstance(value, Range):
                value.check(name)

    def parameters(self, layout: Layout) -> dict[str, float | Range]:
        """One strength per segment, or a pair of factors."""
        del layout
        symbols = ("k",) if self.parametrization == "product" else ("alpha", "gamma")
        return {
            f"{symbol}_{segment}": self._range(bounds)
            for segment, bounds in self.segments.items()
            for symbol in symbols
        }

    def _range(self, bounds: Sequence[float] | float) -> float | Range:
        if isinstance(bounds, int | float):
            return float(bounds)
        if len(bounds) != 2:
            raise ValueError(f"segments: bounds must be a number or [low, high], got {list(bounds)}")
        low, high = bounds
        middle = math.sqrt(low * high) if self.log and low > 0 else (low + high) / 2
        return Range(low=low, high=high, default=middle, log=self.log)

    def null(self, layout: Layout) -> Parameters:
        """All strengths 0."""
        return dict.fromkeys(self.parameters(layout), 0.0)

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """The reference of each example: mean block outputs over the tokens of answer and explanation."""
        del artifact
        explanations = self._explain(subject, examples)
        completions = [
            f"{example.answer}\n{explanation}" if explanation else example.answer
            for example, explanation in zip(examples, explanations, strict=True)
        ]

        raw = self.enriched_prompt is not None
        template = self.enriched_prompt or "{question}"
        prompts = [template.replace("{question}", example.question) for example in examples]

        sites = [Site(layer) for layer in range(subject.layout.num_layers)]
        states = subject.capture(prompts, completions, sites, tokens="completion", pool="mean", raw=raw)
        return {"reference": torch.stack([states[site] for site in sites], dim=1)}

    def _explain(self, subject: Subject, examples: Sequence[Example]) -> list[str]:
        if self.explanation_tokens == 0:
            return [""] * len(examples)
        prompts = [
            self.explanation_prompt.replace("{question}", example.question).replace("{answer}", example.answer)
            for example in examples
        ]
        texts = subject.generate(prompts, max_new_tokens=self.explanation_tokens, raw=True)
        if self.explanation_marker:
            texts = [text.partition(self.explanation_marker)[2] for text in texts]
        return [text.strip() for text in texts]

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One shift per layer, each row with its own reference and strengths."""
        del artifact
        reference = condition["reference"]
        names = segment_names(tuple(self.segments), reference.shape[1])
        edits = {
            Site(layer): MeanShift(reference[:, layer], self._strength(parameters, name).to(reference), self.mean)
            for layer, name in enumerate(names)
        }
        return Intervention(edits, uses_cache=self.mean == "prompt")

    def _strength(self, parameters: Mapping[str, Tensor], segment: str) -> Float[Tensor, "B"]:
        if self.parametrization == "product":
            return parameters[f"k_{segment}"]
        return parameters[f"alpha_{segment}"] * parameters[f"gamma_{segment}"]


def segment_names(names: Sequence[str], num_layers: int) -> list[str]:
    """The segment of each layer: as even as possible, earlier segments longer (26 layers in 3: 9, 9, 8)."""
    size, longer = divmod(num_layers, len(names))
    return [name for index, name in enumerate(names) for _ in range(size + (index < longer))]
