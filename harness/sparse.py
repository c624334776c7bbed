"""Sparse autoencoders: read from files as they are published, or learnt here from a model's states.

A file is Gemma Scope's ``params.npz`` (or the same tensors as safetensors), or a folder as ``sae_lens`` saves it:
``cfg.json`` beside ``sae_weights.safetensors``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import directions
from harness.concepts import per_text_states, sides_of
from harness.data import Demonstration
from harness.json_text import parsed_object
from harness.model_view import Subject
from harness.steering import Site
from harness.training import Learner, Part, Training, train

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
ARCHITECTURES = ("standard", "jumprelu")


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """A trained autoencoder: ``codes = relu(h @ encoder + bias)`` where that exceeds ``threshold``, else 0.

    Args:
        encoder: width x features.
        bias: added before the threshold.
        decoder: features x width.
        offset: added to what is decoded.
        threshold: JumpReLU's, from 0; zeros for an ordinary one.
    """

    encoder: Float[Tensor, "D F"]
    bias: Float[Tensor, "F"]
    decoder: Float[Tensor, "F D"]
    offset: Float[Tensor, "D"]
    threshold: Float[Tensor, "F"]

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit together."""
        width, features = self.encoder.shape
        expected = {"bias": (features,), "decoder": (features, width), "offset": (width,), "threshold": (features,)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {tuple(getattr(self, name).shape)}")

    def encode(self, h: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """The features' activations, none below 0."""
        inside = h.to(self.encoder) @ self.encoder + self.bias
        return inside.relu() * (inside > self.threshold)

    def decode(self, codes: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch D"]:
        """The state that activations stand for."""
        return codes @ self.decoder + self.offset

    def to(self, device: torch.device) -> SparseCoder:
        """The same in float32 on a device."""
        moved = {f.name: getattr(self, f.name).to(device, torch.float32) for f in dataclasses.fields(self)}
        return SparseCoder(**moved)


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The file of an autoencoder's tensors, and that of its options where it is a folder.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    path = Path(path).expanduser()
    files = (path / "sae_weights.safetensors", path / "cfg.json") if path.is_dir() else (path,)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no autoencoder at {path}: {file} is missing")
    return files


def read(path: str | Path) -> SparseCoder:
    """An autoencoder from a file or folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: tensors are missing, or the architecture or an option of it is not supported.
    """
    path, *beside = files_of(path)
    options = parsed_object(beside[0].read_text("utf-8"), str(beside[0])) if beside else {}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    else:
        tensors = load_file(path)
    return _coder(tensors, options, path)


def _coder(tensors: Mapping[str, Tensor], options: Mapping[str, Any], path: Path) -> SparseCoder:
    architecture = options.get("architecture", "jumprelu" if "threshold" in tensors else "standard")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    # "expected_average_only_in" is folded into the weights when they are saved.
    normalised = options.get("normalize_activations", "none")
    if normalised not in ("none", None, "expected_average_only_in"):
        raise ValueError(f"{path}: normalize_activations must be none or expected_average_only_in, got {normalised!r}")
    missing = [name for name in WEIGHTS if name not in tensors]
    if architecture == "jumprelu" and "threshold" not in tensors:
        missing.append("threshold")
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(tensors))}")

    encoder, bias, decoder, offset = (tensors[name].float() for name in WEIGHTS)
    if options.get("apply_b_dec_to_input"):
        bias = bias - offset @ encoder
    threshold = tensors["threshold"].float() if architecture == "jumprelu" else torch.zeros_like(bias)
    return SparseCoder(encoder, bias, decoder, offset, threshold)


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """Where a method's autoencoder comes from. Part of the method's YAML.

    Args:
        path: a file or folder, see `read`; None learns one from the training texts, which is small and knows no more
            than they do.
        features: how many, if it is learnt.
        sparsity: weight of the activations' sum against the share of variance that is not rebuilt, if it is learnt.
        training: how it is learnt.
    """

    path: str | None = None
    features: int = 256
    sparsity: float = 0.1
    training: Training = field(default_factory=Training)

    def files(self) -> tuple[Path, ...]:
        """What is read: nothing where one is learnt."""
        return () if self.path is None else files_of(self.path)

    def coder(self, subject: Subject, site: Site, texts: Sequence[Demonstration]) -> SparseCoder:
        """The autoencoder for a site, read or learnt.

        Raises:
            ValueError: it belongs to a model of another width.
        """
        if self.path is None:
            return learn(subject, per_text_states(subject, texts, site), self)
        coder = read(self.path).to(subject.device)
        if len(coder.offset) != subject.layout.site_width(site):
            raise ValueError(
                f"{self.path} is for states of width {len(coder.offset)}, but {site} has "
                f"{subject.layout.site_width(site)}"
            )
        return coder


def learn(subject: Subject, states: Sequence[Float[Tensor, "T D"]], settings: Dictionary) -> SparseCoder:
    """Learn an autoencoder from the states of texts; batches count texts."""
    learner = DictionaryLearner(states, settings, subject.device)
    lengths = [len(one) for one in states]
    plan = settings.training.plan(lengths)
    train(learner, plan, settings.training, subject.workspace, lengths, "dictionary")
    return learner.coder()


class DictionaryLearner(Learner):
    """Reconstruction error plus the sum of activations; the decoder's rows keep length 1."""

    def __init__(self, states: Sequence[Float[Tensor, "T D"]], settings: Dictionary, device: torch.device) -> None:
        super().__init__()
        together = torch.cat(list(states))
        self.states, self.device, self.sparsity = states, device, settings.sparsity
        # Learnt at a scale of 1, so that settings mean the same in every model.
        self.scale = float((together - together.mean(0)).norm(dim=1).mean())
        generator = torch.Generator().manual_seed(settings.training.seed)
        start = directions.unit(torch.randn(settings.features, together.shape[1], generator=generator))
        self.decoder = nn.Parameter(start.to(device))
        self.encoder = nn.Parameter(start.T.clone().to(device))
        self.bias = nn.Parameter(torch.zeros(settings.features, device=device))
        self.offset = nn.Parameter((together.mean(0) / self.scale).to(device))

    def loss(self, part: Part) -> Float[Tensor, ""]:
        """The mean over the tokens of the batch."""
        h = torch.cat([self.states[row] for row in part.rows]).to(self.device) / self.scale
        codes = ((h - self.offset) @ self.encoder + self.bias).relu()
        error = (codes @ self.decoder + self.offset - h).square().sum(1)
        tokens = sum(len(self.states[row]) for row in part.batch)
        return (error + self.sparsity * codes.sum(1)).sum() / tokens

    def after_step(self) -> None:
        """Rows of length 1, or activations could shrink for nothing."""
        self.decoder.copy_(directions.unit(self.decoder))

    def coder(self) -> SparseCoder:
        """What was learnt, at the states' own scale."""
        encoder, decoder, offset = self.encoder.detach(), self.decoder.detach(), self.scale * self.offset.detach()
        bias = self.scale * self.bias.detach() - offset @ encoder
        return SparseCoder(encoder, bias, decoder, offset, torch.zeros_like(bias))


def text_codes(
    subject: Subject,
    coder: SparseCoder,
    site: Site,
    texts: Sequence[tuple[str, str]],
    *,
    pool: Literal["max", "mean"],
    replies: bool,
) -> Float[Tensor, "N F"]:
    """Every feature's largest (``pool="max"``) or mean activation in each text.

    Args:
        subject: the model, un-steered.
        coder: the autoencoder.
        site: where it reads.
        texts: prompts and completions.
        pool: over the tokens of each text.
        replies: read the completions alone instead of everything behind the prefix.
    """
    codes_of_texts = torch.zeros(len(texts), len(coder.bias), device=subject.device)
    prompts, completions = [prompt for prompt, _ in texts], [completion for _, completion in texts]
    chunks = subject.capture_tokens(prompts, completions, [site], tokens="completion" if replies else "all")
    for chunk in chunks:
        behind = chunk.where(chunk.position >= subject.prefix_length)
        for number in behind.text.unique().tolist():
            codes = coder.encode(behind.states[site][behind.text == number])
            codes_of_texts[number] = codes.amax(0) if pool == "max" else codes.mean(0)
    return codes_of_texts


def detection(positive: Float[Tensor, "N F"], negative: Float[Tensor, "M F"]) -> Float[Tensor, "F"]:
    """How often a wanted text has more of each feature than another text, ties counting half: the AUROC."""
    above = torch.zeros_like(positive[0])
    for one in positive:
        above += (one > negative).float().sum(0) + (one == negative).float().sum(0) / 2
    return above / (len(positive) * len(negative))


def best_feature(subject: Subject, coder: SparseCoder, site: Site, texts: Sequence[Demonstration], group: str) -> int:
    """The feature whose largest activation best tells a group's wanted texts from its unwanted ones."""
    sides = sides_of(texts, group)
    positive, negative = (text_codes(subject, coder, site, side, pool="max", replies=False) for side in sides)
    return int(detection(positive, negative).argmax())
