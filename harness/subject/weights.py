"""Whether the weights that were loaded are those that the model needs, and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from harness.subject.sharding import own_share


def check_weights(label: str, folder: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse files that transformers would complete with random numbers, or of which it would leave something out."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ())]
    kinds = {
        "lack": sorted(report.get("missing_keys", ())),
        "hold unknown": sorted(report.get("unexpected_keys", ())),
        "hold wrong shapes of": sorted(mismatched),
    }
    problems = [
        f"{kind} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise ValueError(f"the files of {label} in {folder} do not fit the model: they {'; they '.join(problems)}")
    for name, weight in model.named_parameters():
        own = own_share(weight)
        if own.is_meta:  # it waits on disk or in main memory (`harness.subject.offload`)
            continue
        if not own.is_floating_point() or bool(torch.isfinite(own.sum(dtype=torch.float32))):
            continue
        # The sum of large finite weights may overflow: look closely before saying so.
        if not bool(torch.isfinite(own).all()):
            raise ValueError(f"the files of {label} in {folder} hold numbers that are none, in {name}")
