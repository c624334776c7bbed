"""Which un-steered language model says how likely a text is (``scorer=…``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.scoring import Scorer
from harness.subject.fidelity import demand_fidelity
from harness.subject.load import Loaded, ModelConfig, ResolvedModel, load_model, resolve
from harness.subject.local import LocalSubject, SubjectScorer, Template
from harness.subject.network import Network
from harness.subject.sites import FAMILIES


def open_subject(loaded: Loaded) -> LocalSubject:
    """Put a loaded model behind the subject's interface.

    Raises:
        ValueError: the harness does not know the model's architecture, and does not compute it as transformers does.
    """
    config = loaded.config
    network = Network.of(loaded.model, loaded.layout, loaded.device, loaded.stop_ids, config.blocks_path)
    if loaded.model.config.model_type not in FAMILIES:
        demand_fidelity(network)
    return LocalSubject(
        network, loaded.tokenizer, Template(config.prompt_template, config.chat_template), loaded.identity
    )


@dataclass(frozen=True, kw_only=True)
class ScorerChoice:
    """A choice of scorer. It stands in configurations, loads nothing until it is opened, and may be derived from."""

    def resolved(self, find_subject: Callable[[], ResolvedModel]) -> ResolvedModel:
        """The model that scores.

        Args:
            find_subject: tells which model is under study; it need not be there for scorers that do not ask.
        """
        raise NotImplementedError

    def open(self, model: ResolvedModel, subject: LocalSubject | None) -> Scorer:
        """The scorer.

        Args:
            model: what `resolved` gave.
            subject: the model under study, if it is loaded.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SubjectItself(ScorerChoice):
    """The subject without any hooks: no second model to load."""

    def resolved(self, find_subject: Callable[[], ResolvedModel]) -> ResolvedModel:
        """The model under study."""
        return find_subject()

    def open(self, model: ResolvedModel, subject: LocalSubject | None) -> Scorer:
        """The scorer, which shares a loaded subject."""
        return SubjectScorer(subject or open_subject(load_model(model)))


@dataclass(frozen=True, kw_only=True)
class OtherModel(ScorerChoice):
    """A model of its own, loaded when first needed.

    Args:
        scoring: which one. Prompts are given to it as the subject read them, without its own chat template.
        skipped: cut from the start of prompts, such as the subject's "<bos>", which is plain text to another model.
    """

    model: ModelConfig
    skipped: str = ""

    def resolved(self, find_subject: Callable[[], ResolvedModel]) -> ResolvedModel:
        """The scoring model."""
        return resolve(self.model)

    def open(self, model: ResolvedModel, subject: LocalSubject | None) -> Scorer:
        """The scorer, next to a loaded subject."""
        return SubjectScorer(open_subject(load_model(model)), self.skipped)
