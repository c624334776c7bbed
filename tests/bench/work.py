"""The work that every way of decoding gets: the same prompts, the same edits, a fixed number of new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from harness.steering import Carry, Edit, Intervention, Layout, Site, Where
from harness.subject.load import Loaded, ModelConfig
from harness.subject.local import Template

if TYPE_CHECKING:
    from jaxtyping import Float

_CONF = Path(__file__).parents[2] / "conf" / "model"
_ASKED = (
    "capital",
    "largest city",
    "official language",
    "currency",
    "highest mountain",
    "longest river",
    "national dish",
)
_PLACES = ("France", "Japan", "Brazil", "Kenya", "Norway", "Peru", "Egypt", "Canada", "Turkey", "India", "New Zealand")
_FORMS = (
    "What is the {asked} of {place}?",
    "Name the {asked} of {place} and say in two sentences why it matters to the people who live there.",
    "Please tell me about the {asked} of {place}.",
    "A friend asks you about {place}. What is its {asked}, and what else should one know about it?",
)


@dataclass(frozen=True, eq=False)
class Push(Edit):
    """Add ``strength * direction`` to every token: each row has a strength and a direction of its own."""

    direction: Float[Tensor, "B D"]
    strength: Float[Tensor, "B"]

    def apply(self, h: Float[Tensor, "B T D"], where: Where, carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        """The shifted state."""
        return where.keep(h + (self.strength[:, None] * self.direction)[:, None], h), carry


def model_config(name: str, device: str, dtype: str | None) -> ModelConfig:
    """The model that a YAML in conf/model describes, a folder or a hub id.

    Raises:
        ValueError: the YAML holds settings that no model has.
    """
    if not (_CONF / f"{name}.yaml").is_file():
        return ModelConfig(kind="hub", id=name, device=device, dtype=dtype or "float32", chat_template=False)  # type: ignore[arg-type]
    return ModelConfig(**(_settings(name) | {"device": device} | ({"dtype": dtype} if dtype else {})))


def _settings(name: str) -> dict[str, Any]:
    """What a YAML in conf/model states, on top of the one that it starts from: Hydra may not be installed here."""
    stated = yaml.safe_load((_CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    for start in stated.pop("defaults", []):
        settings |= {} if start == "_self_" else _settings(start)
    return settings | {key: value for key, value in stated.items() if not key.startswith("_")}


def model_overrides(name: str, device: str, dtype: str | None) -> list[str]:
    """The same model on the harness's command line."""
    if (_CONF / f"{name}.yaml").is_file():
        chosen = [f"model={name}"]
    else:
        chosen = ["model=hf", f"model.id='{name}'", "model.chat_template=false"]
    return [*chosen, f"model.device={device}", *([f"model.dtype={dtype}"] if dtype else [])]


def encoded_prompts(loaded: Loaded, count: int) -> list[list[int]]:
    """Questions of four lengths, as the model reads them; distinct up to 308."""
    template = Template(chat=bool(loaded.tokenizer.chat_template))
    questions = [form.format(asked=asked, place=place) for place in _PLACES for asked in _ASKED for form in _FORMS]
    texts = [template.render(loaded.tokenizer, questions[index % len(questions)]) for index in range(count)]
    return [list(loaded.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be decoded.

    Args:
        prompts: token ids of each row's prompt.
        new_tokens: completion length of every row; ends of text are ignored.
        directions: one unit vector per layer, times a typical norm, on the CPU in float32.
        strengths: one per row; 0 changes nothing.
    """

    prompts: Sequence[list[int]]
    new_tokens: int
    directions: Float[Tensor, "L D"]
    strengths: Float[Tensor, "B"]

    @classmethod
    def of(cls, loaded: Loaded, rows: int, new_tokens: int) -> Work:
        """Rows of the bench's own questions, each with a strength of its own."""
        strengths = torch.linspace(0.1, 1.0, rows)
        return cls(encoded_prompts(loaded, rows), new_tokens, directions(loaded.layout), strengths)

    @property
    def rows(self) -> int:
        """Number of trials."""
        return len(self.prompts)

    def plain(self) -> dict[str, Any]:
        """Numbers and lists alone, for a program that does not have the harness."""
        return {
            "prompts": list(self.prompts),
            "new_tokens": self.new_tokens,
            "directions": self.directions.tolist(),
            "strengths": self.strengths.tolist(),
        }

    def intervention(self, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> Intervention:
        """An edit at the output of every block (of the first ``layers``), with one strength per row."""
        strengths = self.strengths.to(device, dtype)
        chosen = self.directions[:layers].to(device, dtype)
        rows = self.rows
        return Intervention(
            {Site(i): Push(row.expand(rows, -1).contiguous(), strengths) for i, row in enumerate(chosen)}
        )


def directions(layout: Layout) -> Float[Tensor, "L D"]:
    """A fixed random direction per layer, of norm 1: strong enough to change what is written, too weak to break it."""
    drawn = torch.randn(layout.num_layers, layout.width, generator=torch.Generator().manual_seed(0))
    return drawn / drawn.norm(dim=1, keepdim=True)
