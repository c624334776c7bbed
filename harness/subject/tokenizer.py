"""Tokenizers, for which no weights load."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from harness.subject import gguf

if TYPE_CHECKING:
    from harness.subject.load import ModelConfig

_TEMPLATE_SECONDS = 10
"""How long a chat template may compute over one short message; usual ones take a thousandth of a second."""


def folder_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, which pads on the left and has a padding token.

    Raises:
        ValueError: a chat template is asked for, and there is none, or it does not end.
    """
    # AutoTokenizer rebuilds some families' tokenizers by their own rules, which would spoil the tiny models' bytes.
    loader = PreTrainedTokenizerFast if config.kind == "tiny" else AutoTokenizer
    with quiet_transformers():
        tokenizer = loader.from_pretrained(folder, trust_remote_code=config.trust_remote_code, padding_side="left")
    return _usable(tokenizer, config)


def gguf_tokenizer(path: Path, digest: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the converted copy if there is one, else that in the file itself, as `folder_tokenizer`."""
    folder = gguf.converted_folder(digest)
    if folder.exists():
        return folder_tokenizer(folder, config)
    with quiet_transformers():
        return _usable(gguf.load_tokenizer(path), config)


def _usable(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token, its chat template tried out."""
    if config.chat_template and not tokenizer.chat_template:
        raise ValueError(f"{config.label} has no chat template: set model.chat_template=false")
    if config.chat_template:
        with _ending(f"the chat template of {config.label} did not end within {_TEMPLATE_SECONDS} s"):
            tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _ending(message: str) -> Iterator[None]:
    """Raise ValueError once the block has computed for too long: a template is a program, and may loop for ever."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield  # signals reach the main thread alone, and not every system has this one
        return

    def stop(*_: object) -> None:
        raise ValueError(message)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _TEMPLATE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and advice off the terminal while it loads."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
