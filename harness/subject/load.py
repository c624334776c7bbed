"""Which model, and how it is loaded: from the hub, a folder, a GGUF file, or random weights for tests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.steering import Layout
from harness.subject import gguf, hub, sharding, tiny
from harness.subject.amx import avoid_trapped_amx
from harness.subject.offload import Offload, check_offload, placement
from harness.subject.sites import family_of
from harness.subject.tokenizer import folder_tokenizer, gguf_tokenizer, quiet_transformers
from harness.subject.weights import check_weights

Kind = Literal["package", "hub", "gguf", "tiny"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Quantization = Literal["none", "int8", "nf4"]

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "package": ("package", "file"),
    "hub": ("id",),
    "gguf": ("path",),
    "tiny": ("family",),
}
"""Fields that say which model, by kind."""
_MOST_LAYERS = 1000
"""Several times what any model has: to build what a wrong file asks for could take hours."""

_OPTIONAL: dict[Kind, tuple[str, ...]] = {
    "package": ("sha256",),
    "hub": ("revision",),
    "gguf": ("sha256",),
    "tiny": (),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model and the way to run it.

    Args:
        kind: ``package`` (a GGUF file inside an installed Python distribution), ``hub`` (a hub id or a local folder),
            ``gguf`` (a GGUF file), or ``tiny`` (random weights, for tests).
        id: for ``hub``: ``OWNER/NAME`` or a folder in the hub's format.
        revision: for ``hub``: branch, tag or commit; None for the default branch. The resolved commit is recorded.
        path: for ``gguf``: the file.
        package: for ``package``: what to give pip, ``name`` or ``name==version``. It is never imported.
        file: for ``package``: glob of the one GGUF file inside it.
        sha256: for ``package`` and ``gguf``: the file's hash, checked before loading; None to take any.
        family: for ``tiny``: one of `harness.subject.tiny.FAMILIES`.
        dtype: of weights and hidden states; with int8 and nf4, of everything that is not quantised.
        device: ``auto`` is CUDA where there is some, else the CPU; or ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        quantization: ``none``, or ``int8`` or ``nf4`` through bitsandbytes.
        chat_template: wrap each prompt in the tokenizer's chat template.
        prompt_template: text with ``{question}``.
        trust_remote_code: let a model from the hub run its own Python code.
        tensor_parallel: processes, each with a GPU where there are any, that share the weights of every layer between
            them (tensor parallelism): for models that one GPU cannot hold. Needs an executor with workers.
        offload: where the weights of decoder blocks wait for their turn: ``none`` (on the device), ``cpu`` (in main
            memory, for a GPU that cannot hold them) or ``disk``. Slow; the tokens are the same.
        blocks_path: dotted path of the list of decoder blocks, for architectures that the harness does not know.
        ranges: strength ranges of methods that depend on the model, ``{full: [low, high], early: …}``.
    """

    kind: Kind
    id: str | None = None
    revision: str | None = None
    path: str | None = None
    package: str | None = None
    file: str | None = None
    sha256: str | None = None
    family: str | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    quantization: Quantization = "none"
    chat_template: bool = True
    prompt_template: str = "{question}"
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    offload: Offload = "none"
    blocks_path: str | None = None
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse settings that no model could be loaded with."""
        # Values from a YAML are checked by their types; a configuration made in Python is not.
        choices_of = {"kind": Kind, "dtype": Dtype, "quantization": Quantization, "offload": Offload}
        for name, allowed in choices_of.items():
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"model.{name} must be one of {choices}, got {getattr(self, name)!r}")

        missing = [f"model.{name}" for name in _NEEDED[self.kind] if not getattr(self, name)]
        if missing:
            raise ValueError(f"model.kind={self.kind} needs {' and '.join(missing)}")
        self._refuse_other_kinds_fields()

        if "{question}" not in self.prompt_template:
            raise ValueError(f"model.prompt_template must contain {{question}}, got {self.prompt_template!r}")
        if "{answer}" in self.prompt_template:
            raise ValueError(
                f"model.prompt_template must not contain {{answer}}, got {self.prompt_template!r}: no prompt shows the "
                "right answer but that of control=gold_in_prompt"
            )

        if self.tensor_parallel < 1:
            raise ValueError(f"model.tensor_parallel must be at least 1, got {self.tensor_parallel}")
        if self.tensor_parallel > 1 and self.quantization != "none":
            raise ValueError(f"model.quantization={self.quantization} cannot be combined with model.tensor_parallel")
        if self.offload != "none" and (self.tensor_parallel > 1 or self.quantization != "none"):
            other = "tensor_parallel" if self.tensor_parallel > 1 else "quantization"
            raise ValueError(f"model.offload={self.offload} cannot be combined with model.{other}")
        if self.quantization != "none" and self.dtype == "float64":
            raise ValueError(f"model.quantization={self.quantization} cannot be combined with model.dtype=float64")
        for name, bounds in self.ranges.items():
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"model.ranges.{name} must be [low, high] with 0 < low <= high, got {list(bounds)}")

    def _refuse_other_kinds_fields(self) -> None:
        """``model.id=NAME`` beside the default model would run the default and call it NAME: refuse it."""
        used = {*_NEEDED[self.kind], *_OPTIONAL[self.kind]}
        of_some_kind = {name for fields in (*_NEEDED.values(), *_OPTIONAL.values()) for name in fields}
        for name in sorted(of_some_kind - used):
            value = getattr(self, name)
            if value is None:
                continue

            node = {"package": "smollm2", "hub": "hf"}
            kinds = [kind for kind in _NEEDED if name in (*_NEEDED[kind], *_OPTIONAL[kind])]
            ways = " or ".join(f"model={node.get(kind, kind)}" for kind in kinds)
            raise ValueError(
                f"model.{name}={value} is not used by a model of kind {self.kind} ({self.label}): "
                f"write {ways} beside it, or leave it out"
            )

    @property
    def label(self) -> str:
        """A short name for tables."""
        match self.kind:
            case "package":
                return str(self.package).partition("==")[0]
            case "gguf":
                return Path(str(self.path)).stem
            case "tiny":
                return f"tiny-{self.family}"
            case "hub":
                return str(self.id).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode, without gradients on its weights, and what belongs to it.

    Args:
        config: what it was loaded from.
        model: the transformers model.
        tokenizer: pads on the left, and always has a padding token.
        layout: its shape.
        identity: names the exact weights: a content hash, or hub id and commit.
        device: where it lives.
        stop_ids: tokens that end a completion.
    """

    config: ModelConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    identity: str
    device: torch.device
    stop_ids: frozenset[int]


@dataclass(frozen=True, eq=False)
class ResolvedModel:
    """Which model a configuration stands for, found out once; no weights are loaded.

    Args:
        config: what was asked for.
        settings: the model's own configuration.
        layout: its shape.
        identity: names the exact weights: a content hash, or hub id and commit.
        device: where it will live.
        weights: fetches or converts the weights if need be, and returns the folder that holds them.
        tokenizer: reads the tokenizer, for which no weights load.
    """

    config: ModelConfig
    settings: PretrainedConfig
    layout: Layout
    identity: str
    device: torch.device
    weights: Callable[[], Path]
    tokenizer: Callable[[], PreTrainedTokenizerBase]

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where its configuration does not say."""
        return getattr(self.settings.get_text_config(), "max_position_embeddings", None)


def resolve(config: ModelConfig) -> ResolvedModel:
    """Find the model that a configuration stands for.

    A hub model costs a few small downloads, and its branch is pinned to the commit that it points to now; a GGUF file
    that was never loaded before costs a few seconds of parsing.

    Raises:
        ValueError: unknown architecture, wrong hash, or a device that this machine lacks.
        FileNotFoundError: the package, file, folder or hub model is not there.
        PermissionError: the hub model is gated.
        ConnectionError: the hub cannot be reached.
    """
    device = device_of(config)
    sharding.check_device(device, config.tensor_parallel)
    check_offload(config.offload, device)
    with quiet_transformers():
        match config.kind:
            case "package" | "gguf":
                path, digest = _gguf_file(config)
                settings, identity = gguf.peek_config(path, digest), f"gguf:{digest}:v{gguf.CONVERSION}"
                weights = partial(gguf.converted, path, digest)
                tokenizer = partial(gguf_tokenizer, path, digest, config)
            case "tiny":
                folder, identity = tiny.tiny_folder(str(config.family)), tiny.tiny_identity(str(config.family))
                settings, weights = _settings(folder, config), partial(_same, folder)
                tokenizer = partial(folder_tokenizer, folder, config)
            case "hub":
                folder, identity, weights = _hub_model(config)
                settings, tokenizer = _settings(folder, config), partial(folder_tokenizer, folder, config)
    layout = sharding.layout_of_shares(layout_of(settings, config.blocks_path), settings, config.tensor_parallel)
    return ResolvedModel(config, settings, layout, identity, device, weights, tokenizer)


def _settings(folder: Path, config: ModelConfig) -> PretrainedConfig:
    return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def _hub_model(config: ModelConfig) -> tuple[Path, str, Callable[[], Path]]:
    """A folder with the model's settings, the identity of its weights, and what fetches them."""
    name, code = str(config.id), config.trust_remote_code
    if folder := hub.local_folder(name):
        return folder, hub.folder_identity(folder), partial(_same, folder)
    folder, commit = hub.hub_folder(name, config.revision, weights=False, code=code)

    def weights() -> Path:
        return hub.hub_folder(name, commit, weights=True, code=code)[0]

    return folder, f"{name}@{commit}", weights


def _same(folder: Path) -> Path:
    return folder


def load_model(chosen: ModelConfig | ResolvedModel) -> Loaded:
    """Load a model. The first load of a GGUF file converts it (16 to 60 s for 0.1 to 1.5 billion weights).

    Raises:
        ValueError: as `resolve`; also when a chat template is asked for that the model lacks, and when the files lack
            weights that the model needs, hold others than it knows, or numbers that are none.
        FileNotFoundError: as `resolve`.
        PermissionError: as `resolve`.
        ConnectionError: as `resolve`.
    """
    resolved = chosen if isinstance(chosen, ResolvedModel) else resolve(chosen)
    config, device = resolved.config, resolved.device
    if device.type == "cpu":
        avoid_trapped_amx()

    folder = resolved.weights()
    with quiet_transformers():
        tokenizer = folder_tokenizer(folder, config)
        model = _model(folder, config, device)
    model.eval().requires_grad_(False)
    stop_ids = stop_ids_of(model, tokenizer)
    return Loaded(config, model, tokenizer, resolved.layout, resolved.identity, device, stop_ids)


def layout_of(config: PretrainedConfig, blocks_path: str | None = None) -> Layout:
    """The shape of the language model that a configuration describes.

    Raises:
        ValueError: unknown architecture, and no path of its blocks; or more layers than any model has.
    """
    text = config.get_text_config()
    if not 1 <= text.num_hidden_layers <= _MOST_LAYERS:
        raise ValueError(
            f"the model's config.json says num_hidden_layers={text.num_hidden_layers}; it must be from 1 to "
            f"{_MOST_LAYERS}"
        )
    width, heads = text.hidden_size, text.num_attention_heads
    neurons = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    return Layout(
        num_layers=text.num_hidden_layers,
        width=width,
        num_heads=heads,
        head_width=getattr(text, "head_dim", None) or width // heads,
        # GPT-2 leaves the width of its MLP out where it is the usual one.
        num_neurons=neurons or (4 * width if config.model_type == "gpt2" else None),
        num_key_heads=getattr(text, "num_key_value_heads", None) or heads,
        absent=family_of(config.model_type, blocks_path).absent,
    )


def _gguf_file(config: ModelConfig) -> tuple[Path, str]:
    if config.kind == "package":
        path = gguf.packaged_file(str(config.package), str(config.file))
    else:
        path = Path(str(config.path)).expanduser()
    return path, gguf.check_gguf(path, config.sha256)


def device_of(config: ModelConfig) -> torch.device:
    """The device to run on.

    Raises:
        ValueError: no such device, or not on this machine.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError:
        device = torch.device("meta")

    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"model.device must be auto, cpu, cuda, cuda:N or mps, got {config.device!r}")

    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"model.device={config.device} asked for, but torch sees {torch.cuda.device_count()} CUDA devices: "
            "use model.device=cpu, or install a CUDA build of torch"
        )

    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("model.device=mps asked for, but this machine has none: use model.device=cpu")
    if device.type == "mps" and config.dtype == "float64":
        raise ValueError("model.dtype=float64 does not exist on mps: use model.device=cpu")
    return device


def _model(folder: Path, config: ModelConfig, device: torch.device) -> PreTrainedModel:
    dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    if config.quantization != "none":
        # It reports casts at every call of every layer, and optional kernels that are not installed.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        options["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if config.quantization == "int8"
            else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        )
        options["device_map"] = {"": device}

    if config.tensor_parallel > 1 or config.offload != "none":
        settings = _settings(folder, config)
        blocks = family_of(settings.model_type, config.blocks_path).blocks
        if config.tensor_parallel > 1:
            options["distributed_config"] = sharding.plan_for(config.tensor_parallel, settings, blocks)
        else:
            options |= placement(config.offload, device, settings, blocks, config.trust_remote_code)

    # Only safetensors: the model's identity covers them and no other file of weights.
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **options
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {config.label} in {folder} cannot be read: {error}") from error
    model, report = loaded
    check_weights(config.label, folder, model, report)
    is_placed = config.quantization != "none" or config.tensor_parallel > 1 or config.offload != "none"
    return model if is_placed else model.to(device)


def stop_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that the model, its generation settings or its tokenizer call an end."""
    sources = (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer)
    declared = [getattr(source, "eos_token_id", None) for source in sources]
    ids = itertools.chain.from_iterable(item if isinstance(item, list) else [item] for item in declared)
    return frozenset(i for i in ids if isinstance(i, int))
