"""Which un-steered model judges how likely a text is."""

from __future__ import annotations

from dataclasses import dataclass

from harness.subject.load import Loaded, ModelConfig, load_model
from harness.subject.local import LocalSubject, SubjectScorer, Template
from harness.subject.network import Network
from harness.types import Scorer


def open_subject(loaded: Loaded) -> LocalSubject:
    """Put a loaded model behind the subject's interface."""
    config = loaded.config
    network = Network.of(loaded.model, loaded.layout, loaded.device, loaded.stop_ids, config.blocks_path)
    return LocalSubject(
        network, loaded.tokenizer, Template(config.prompt_template, config.chat_template), loaded.identity
    )


@dataclass(frozen=True, kw_only=True)
class SubjectItself:
    """The subject without any hooks: no second model to load."""

    def model_of(self, subject: ModelConfig) -> ModelConfig:
        """The model to load when scoring from disk."""
        return subject

    def open(self, subject: LocalSubject) -> Scorer:
        """The scorer, next to a loaded subject."""
        return SubjectScorer(subject)


@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """A model of its own, loaded when first needed.

    Args:
        model: which one. Prompts are given to it as the subject read them, without its own chat template.
    """

    model: ModelConfig

    def model_of(self, subject: ModelConfig) -> ModelConfig:
        """The model to load when scoring from disk."""
        return self.model

    def open(self, subject: LocalSubject) -> Scorer:
        """The scorer, next to a loaded subject."""
        return SubjectScorer(open_subject(load_model(self.model)))
