"""Which un-steered model judges how likely a text is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.records.identity import plain
from harness.scoring import Scorer
from harness.subject.load import Loaded, ModelConfig, load_model, locate
from harness.subject.local import LocalSubject, SubjectScorer, Template
from harness.subject.network import Network


def open_subject(loaded: Loaded) -> LocalSubject:
    """Put a loaded model behind the subject's interface."""
    config = loaded.config
    network = Network.of(loaded.model, loaded.layout, loaded.device, loaded.stop_ids, config.blocks_path)
    return LocalSubject(
        network, loaded.tokenizer, Template(config.prompt_template, config.chat_template), loaded.identity
    )


def scorer_identity(scorer: Any, subject: ModelConfig) -> list[Any]:
    """What scores depend on: the scorer's settings and the exact weights of its model."""
    return [plain(scorer), locate(scorer.model_of(subject))[1]]


@dataclass(frozen=True, kw_only=True)
class SubjectItself:
    """The subject without any hooks: no second model to load."""

    def model_of(self, subject: ModelConfig) -> ModelConfig:
        """The model to load when scoring from disk."""
        return subject

    def open(self, subject: LocalSubject) -> Scorer:
        """The scorer, next to a loaded subject."""
        return self.around(subject)

    def around(self, opened: LocalSubject) -> Scorer:
        """The scorer that its own loaded model makes."""
        return SubjectScorer(opened)


@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """A model of its own, loaded when first needed.

    Args:
        model: which one. Prompts are given to it as the subject read them, without its own chat template.
        skipped: cut from the start of prompts, such as the subject's "<bos>", which is plain text to another model.
    """

    model: ModelConfig
    skipped: str = ""

    def model_of(self, subject: ModelConfig) -> ModelConfig:
        """The model to load when scoring from disk."""
        return self.model

    def open(self, subject: LocalSubject) -> Scorer:
        """The scorer, next to a loaded subject."""
        return self.around(open_subject(load_model(self.model)))

    def around(self, opened: LocalSubject) -> Scorer:
        """The scorer that its own loaded model makes."""
        return SubjectScorer(opened, self.skipped)
