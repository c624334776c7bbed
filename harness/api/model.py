"""A model to steer: by name, from the hub, or one that is loaded already."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from harness.config import composed, plain_values
from harness.control import Control
from harness.data import Example
from harness.nodes import built
from harness.protocol import Unsteered
from harness.subject.load import Loaded, ModelConfig, ResolvedModel, layout_of, load_model, resolve, stop_ids_of
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.tasks.task import Task
from harness.workbench import Request, Workbench

if TYPE_CHECKING:
    from harness.api.fitted import Fitted, Steer


@dataclass(frozen=True, kw_only=True)
class Prompts(Task):
    """Prompts that were handed over one by one."""

    name: ClassVar[str] = "prompts"
    columns: ClassVar[tuple[str, ...]] = ("question",)


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Made by `load`.

    Args:
        subject: the engine's view of it.
        resolved: which one it is.
        overrides: what loads it on the command line; empty for a model that was handed over in memory.
    """

    subject: LocalSubject
    resolved: ResolvedModel
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.resolved.config.label

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        return self.resolved.layout.num_layers

    def __repr__(self) -> str:
        layout = self.resolved.layout
        return f"<Model {self.name}: {layout.num_layers} layers of width {layout.width} on {self.resolved.device}>"

    def generate(
        self,
        prompts: str | Example | Sequence[str | Example],
        *,
        steer: Fitted | Steer | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Any:
        """Complete prompts, all in one batch.

        Args:
            prompts: one question or several; an `Example` for methods that look at more than the question.
            steer: what steers; None for the model as it is.
            max_new_tokens: length limit of a completion, in tokens.
            temperature: 0 takes the likeliest token; above, tokens are drawn.
            seed: of these draws.

        Returns:
            The completion of one prompt, or a list of completions.

        Raises:
            ValueError: the steering was fitted on a model of another shape.
        """
        one = isinstance(prompts, str | Example)
        listed: Sequence[str | Example] = [prompts] if one else prompts  # pyright: ignore[reportAssignmentType]
        examples = [
            prompt if isinstance(prompt, Example) else Example(f"prompt-{place}", prompt)
            for place, prompt in enumerate(listed)
        ]
        applied = None if steer is None else steer.at()
        method, artifact, parameters = Unsteered(), {}, {}
        if applied is not None:
            applied.fitted.check(self)
            method, artifact, parameters = applied.fitted.method, applied.fitted.artifact, applied.parameters

        self.forget()
        task = Prompts(max_new_tokens=max_new_tokens)
        bench = Workbench(self.subject, task, method, Control(), seed)
        bench.adopt(artifact)
        rows = [Request(example, dict(parameters), temperature=temperature) for example in examples]
        texts = [generation.text for generation in bench.run(rows)]
        return texts[0] if one else texts

    def forget(self) -> None:
        """Give up what was computed before: who handed a model over may have trained it since."""
        self.subject.forget_prompts()
        self.subject.forget_captures()


def load(model: Any = "smollm2", *, tokenizer: Any = None, **settings: Any) -> Model:
    """Load a model.

    Args:
        model: a name of ``conf/model`` (``smollm2``), a hub id, a folder, a GGUF file, or a transformers model that is
            loaded already. The last is left as it was; its weights are shared, not copied (on a CPU, some are
            reordered into a copy of their own).
        tokenizer: of a model that is loaded already; None looks it up where the model came from.
        settings: as ``model.NAME`` on the command line: ``dtype="bfloat16"``, ``device="cuda:1"``.

    Raises:
        ValueError: no such model, or a setting is wrong.
        FileNotFoundError: no such file or folder.
        ConnectionError: the hub cannot be reached.
    """
    if not isinstance(model, str | Path):
        return _in_hand(model, tokenizer, settings)
    overrides = (*_choice(str(model)), *(f"model.{name}={written(value)}" for name, value in settings.items()))
    config = built(plain_values(composed(overrides)[0])["model"], ModelConfig, "model")
    resolved = resolve(config)
    return Model(open_subject(load_model(resolved)), resolved, overrides)


def _choice(name: str) -> tuple[str, ...]:
    known = sorted(item.name[:-5] for item in resources.files("conf.model").iterdir() if item.name.endswith(".yaml"))
    if name in known:
        return (f"model={name}",)
    if name.endswith(".gguf"):
        return ("model=gguf", f"model.path={written(name)}")
    if "/" in name or Path(name).is_dir():
        return ("model=hf", f"model.id={written(name)}")
    raise ValueError(f"there is no model {name!r}: give one of {', '.join(known)}, OWNER/NAME of the hub, or a folder")


def written(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _in_hand(model: Any, tokenizer: Any, settings: dict[str, Any]) -> Model:
    """A model that somebody else loaded, behind modules of our own that share its weights."""
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "config"):
        raise ValueError(f"model must be a name, a path or a transformers model, got {type(model).__name__}")
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path, padding_side="left")
    elif tokenizer.padding_side != "left" or tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token

    shared: dict[int, Any] = {id(tensor): tensor for tensor in model.buffers()}
    # Methods that train take gradients through the model, which must not be left behind in somebody else's weights.
    shared |= {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    own = copy.deepcopy(model, shared).eval()
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    device = next(model.parameters()).device
    usual = {"chat_template": bool(tokenizer.chat_template), "dtype": dtype, "device": str(device)}
    name = str(model.config.name_or_path or type(model).__name__)
    config = ModelConfig(kind="hub", id=name, **{**usual, **settings})
    resolved = ResolvedModel(
        config,
        model.config,
        layout_of(model.config, config.blocks_path),
        f"memory:{_weights_digest(model)}",
        device,
        weights=_nowhere,
        tokenizer=lambda: tokenizer,
    )
    loaded = Loaded(config, own, tokenizer, resolved.layout, resolved.identity, device, stop_ids_of(own, tokenizer))
    return Model(open_subject(loaded), resolved)


def _weights_digest(model: Any) -> str:
    """A hash of all weights: a fine-tuned model is another model."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _nowhere() -> Path:
    raise ValueError("this model was handed over in memory and cannot be loaded again: load it first")
