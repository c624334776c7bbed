"""A small sequence classifier with random weights, saved as any other one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from harness.subject.digest import build_once, cache_root
from harness.subject.tiny import byte_tokenizer

LONGEST = 96


@dataclasses.dataclass(frozen=True)
class Kind:
    """Labels of a classifier, and whether a text may have several."""

    labels: tuple[str, ...] = ("neutral", "toxic")
    several: bool = False


ONE_LABEL = Kind()


def classifier_folder(kind: Kind = ONE_LABEL) -> Path:
    """The folder of a classifier, built at the first call."""
    name = "-".join(["tiny-classifier", *kind.labels, "several" if kind.several else "one"])
    folder = cache_root() / "models" / name
    if not folder.exists():
        build_once(folder, partial(_write, kind))
    return folder


def _write(kind: Kind, folder: Path) -> None:
    tokenizer = byte_tokenizer(False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LONGEST,
        id2label=dict(enumerate(kind.labels)),
        label2id={label: place for place, label in enumerate(kind.labels)},
        problem_type="multi_label_classification" if kind.several else "single_label_classification",
    )
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
