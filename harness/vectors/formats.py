"""Vectors in the files of other tools: repeng, llama.cpp, steering-vectors, lm-evaluation-harness, plain tensors.

All of them hold what is added to hidden states, layer by layer. What a file does not say (on which tokens, at which
strength) is its tool's to decide; these four add to every token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.records.lines import replaced
from harness.steering import Site, Stream
from harness.subject.sites import family_of
from harness.vectors.additions import Addition

_ARCHITECTURE = "controlvector"
_LAYER_TYPES: Mapping[Stream, str] = {"block": "decoder_block", "attention": "self_attn", "mlp": "mlp"}
"""What steering-vectors calls our streams."""


def write_control_vector(additions: Sequence[Addition], path: Path, model_type: str) -> None:
    """A GGUF control vector, as repeng writes and reads it."""
    from gguf import GGUFWriter

    vectors = _of_blocks(additions, "a GGUF control vector")
    with replaced(path) as draft, _quiet("gguf"):
        writer = GGUFWriter(draft, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def write_llama_cpp(additions: Sequence[Addition], path: Path, model_type: str) -> None:
    """The same for llama.cpp, which cannot steer the first layer."""
    if 0 in _of_blocks(additions, "a GGUF control vector"):
        raise ValueError("llama.cpp adds to no state behind layer 0: choose a later layer")
    write_control_vector(additions, path, model_type)


def write_steering_vectors(additions: Sequence[Addition], path: Path, model_type: str) -> None:
    """The fields of ``steering_vectors.SteeringVector``, for ``SteeringVector(**torch.load(path))``."""
    _demand_all_tokens(additions, "steering-vectors")
    streams = {addition.site.stream for addition in additions}
    if len(streams) > 1 or not streams <= _LAYER_TYPES.keys():
        raise ValueError(f"steering-vectors adds at one of {', '.join(_LAYER_TYPES)}, not at {_sites(additions)}")
    layers = {addition.site.layer: addition.vector for addition in additions}
    with replaced(path) as draft:
        torch.save({"layer_activations": layers, "layer_type": _LAYER_TYPES[streams.pop()]}, draft)


def write_lm_eval(additions: Sequence[Addition], path: Path, model_type: str) -> None:
    """What ``lm_eval --model steered --model_args steer_path=…`` reads."""
    _demand_all_tokens(additions, "lm-evaluation-harness")
    family = family_of(model_type)
    blocks = family.blocks.partition(".")[2]  # as the model behind the head names them
    content = {}
    for addition in additions:
        layer, stream = addition.site
        if stream not in ("block", "attention", "mlp"):
            raise ValueError(f"lm-evaluation-harness adds to outputs of modules only, not at {addition.site}")
        part = "" if stream == "block" else f".{family.parts[stream]}"
        content[f"{blocks}.{layer}{part}"] = {
            "steering_vector": addition.vector,
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    with replaced(path) as draft:
        torch.save(content, draft)


Writer = Callable[[Sequence[Addition], Path, str], None]
WRITERS: Mapping[str, tuple[str, Writer]] = {
    "repeng": (".gguf", write_control_vector),
    "gguf": (".gguf", write_llama_cpp),
    "steering-vectors": (".pt", write_steering_vectors),
    "lm-eval": (".pt", write_lm_eval),
}
"""By the tool's name: suffix of the file, and what writes it."""


def read_vectors(path: Path, layer: int | None = None, stream: Stream = "block") -> dict[Site, Tensor]:
    """Vectors from a file of any of these formats.

    Args:
        path: a GGUF control vector, a ``.pt`` file of steering-vectors or lm-evaluation-harness, or a tensor on its own
            (``.safetensors``, ``.pt``, ``.npy``).
        layer: where a tensor on its own belongs.
        stream: the same.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no vectors, or does not say where they belong and ``layer`` is None.
    """
    if not path.is_file():
        raise FileNotFoundError(f"method.path: vector file not found: {path}")

    match path.suffix:
        case ".gguf":
            vectors = _from_gguf(path)
        case ".safetensors":
            vectors = _from_tensors(load_file(path), path, layer, stream)
        case ".npy":
            vectors = _alone(torch.from_numpy(np.load(path, allow_pickle=False)), path, layer, stream)
        case ".pt" | ".pth":
            vectors = _from_torch(path, layer, stream)
        case _:
            raise ValueError(f"method.path must end in .safetensors, .gguf, .pt, .pth or .npy, got {path}")

    for site, vector in vectors.items():
        if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
            raise ValueError(f"{path}: the vector at {site} must be one row of finite numbers, got {_shape(vector)}")
    return {site: vector.float() for site, vector in sorted(vectors.items())}


def _from_gguf(path: Path) -> dict[Site, Tensor]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from error
    vectors = {
        Site(int(tensor.name.removeprefix("direction."))): torch.from_numpy(np.array(tensor.data))
        for tensor in reader.tensors
        if tensor.name.removeprefix("direction.").isdigit()
    }
    if not vectors:
        raise ValueError(f"{path} is no control vector: it holds no tensor direction.N")
    return vectors


def _from_torch(path: Path, layer: int | None, stream: Stream) -> dict[Site, Tensor]:
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be loaded without running code from it ({reason}); of a pickled object, save its tensors: "
            "torch.save({'layer_activations': vector.layer_activations, 'layer_type': vector.layer_type}, FILE)"
        ) from error

    if isinstance(content, Tensor):
        return _alone(content, path, layer, stream)
    if isinstance(content, Mapping) and isinstance(content.get("layer_activations"), Mapping):
        names = {kind: ours for ours, kind in _LAYER_TYPES.items()}
        kind = content.get("layer_type", "decoder_block")
        if kind not in names:
            raise ValueError(f"{path}: layer_type must be one of {', '.join(names)}, got {kind!r}")
        return {Site(int(place), names[kind]): vector for place, vector in content["layer_activations"].items()}

    if isinstance(content, Mapping) and all(isinstance(item, Mapping) for item in content.values()) and content:
        return _from_lm_eval(content, path)
    if isinstance(content, Mapping) and all(isinstance(item, Tensor) for item in content.values()) and content:
        return _from_tensors(content, path, layer, stream)
    raise ValueError(f"{path} holds neither a tensor nor vectors of layers")


def _from_lm_eval(content: Mapping[str, Mapping[str, Any]], path: Path) -> dict[Site, Tensor]:
    vectors: dict[Site, Tensor] = {}
    for hookpoint, item in content.items():
        if item.get("action") != "add" or item.get("head_index") is not None:
            raise ValueError(f"{path}: {hookpoint} must be action add without head_index, got {item.get('action')!r}")
        site = _site_named(hookpoint)
        if site is None:
            raise ValueError(f"{path}: {hookpoint!r} is the output of no block, attention or MLP")
        vectors[site] = item["steering_vector"] * float(item.get("steering_coefficient", 1.0))
    return vectors


def _from_tensors(tensors: Mapping[Any, Tensor], path: Path, layer: int | None, stream: Stream) -> dict[Site, Tensor]:
    """Tensors that are named after their layer, or a single one."""
    sites = {name: Site(name) if isinstance(name, int) else _site_named(str(name)) for name in tensors}
    named = {site: tensors[name] for name, site in sites.items() if site is not None}
    if len(named) == len(tensors):
        return named
    if len(tensors) == 1:
        return _alone(next(iter(tensors.values())), path, layer, stream)
    unknown = next(name for name, site in sites.items() if site is None)
    raise ValueError(f"{path}: tensors must be named after their layer (layers.18, direction.18), found {unknown!r}")


def _alone(tensor: Tensor, path: Path, layer: int | None, stream: Stream) -> dict[Site, Tensor]:
    if tensor.ndim == 2 and len(tensor) > 1:
        return {Site(place, stream): row for place, row in enumerate(tensor) if bool(row.any())}
    if layer is None:
        raise ValueError(f"{path} holds a vector and does not say of which layer: set method.layer=N")
    return {Site(layer, stream): tensor.reshape(-1)}


def _site_named(name: str) -> Site | None:
    """The site that a module's path or a tensor's name stands for; None if it is not one of those that are added to."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if word.isdigit()]
    if len(numbers) != 1 or numbers[0] == 0:
        return None
    parts = ".".join(words[numbers[0] + 1 :])
    streams: dict[str, Stream] = {"": "block", "block": "block", "self_attn": "attention", "attn": "attention",
                                  "attention": "attention", "mlp": "mlp"}  # fmt: skip
    return Site(int(words[numbers[0]]), streams[parts]) if parts in streams else None


def _of_blocks(additions: Sequence[Addition], tool: str) -> dict[int, Tensor]:
    _demand_all_tokens(additions, tool)
    if any(addition.site.stream != "block" for addition in additions):
        raise ValueError(f"{tool} adds to the outputs of blocks only, not at {_sites(additions)}")
    return {addition.site.layer: addition.vector for addition in additions}


def _demand_all_tokens(additions: Sequence[Addition], tool: str) -> None:
    rules = {addition.tokens for addition in additions} - {"all"}
    if rules:
        raise ValueError(
            f"{tool} adds to every token; this method steers '{', '.join(sorted(rules))}' tokens only. "
            "What it does there was not measured: run it with method.tokens=all first"
        )


def _sites(additions: Sequence[Addition]) -> str:
    return ", ".join(str(addition.site) for addition in additions)


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log off the terminal."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
