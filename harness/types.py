"""The vocabulary of the harness: every name that a plug-in needs, from one place.

Data flows one way. A *task* yields examples; a *method* turns fitted tensors and per-row parameters into an
*intervention*; the engine applies the intervention while it generates; *evaluators* score the records.

The definitions stand on four pages. Read the one that you need:

- `harness.data`: examples, contrast pairs, who may see what. For tasks, and for everybody.
- `harness.steering`: edits, probes, gates, methods; where they act stands in `harness.where`. For methods.
- `harness.model_view`: what a method sees of the model: activations, texts, passes with gradients. For methods.
- `harness.scoring`: records, metrics, scores, evaluators, judges, scorers. For evaluators and judges.

A name is looked up when it is asked for, so that reading scores does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.control import Control as Control
    from harness.data import Access as Access
    from harness.data import Demonstration as Demonstration
    from harness.data import Example as Example
    from harness.data import FitData as FitData
    from harness.data import Offer as Offer
    from harness.data import Pair as Pair
    from harness.data import Parameters as Parameters
    from harness.data import Split as Split
    from harness.model_view import Architecture as Architecture
    from harness.model_view import Forward as Forward
    from harness.model_view import KeptStates as KeptStates
    from harness.model_view import Subject as Subject
    from harness.model_view import TokenCount as TokenCount
    from harness.model_view import TokenStates as TokenStates
    from harness.scoring import Estimate as Estimate
    from harness.scoring import Evaluator as Evaluator
    from harness.scoring import Generation as Generation
    from harness.scoring import Grading as Grading
    from harness.scoring import Judge as Judge
    from harness.scoring import Metric as Metric
    from harness.scoring import Record as Record
    from harness.scoring import RecordKind as RecordKind
    from harness.scoring import Score as Score
    from harness.scoring import Scorer as Scorer
    from harness.scoring import Tools as Tools
    from harness.scoring import Verdict as Verdict
    from harness.search.search import Search as Search
    from harness.steering import Artifact as Artifact
    from harness.steering import Carry as Carry
    from harness.steering import Edit as Edit
    from harness.steering import Gate as Gate
    from harness.steering import Gated as Gated
    from harness.steering import Intervention as Intervention
    from harness.steering import Layout as Layout
    from harness.steering import Method as Method
    from harness.steering import Probe as Probe
    from harness.steering import Range as Range
    from harness.steering import RowData as RowData
    from harness.steering import Site as Site
    from harness.steering import Stream as Stream
    from harness.steering import Tokens as Tokens
    from harness.steering import Where as Where
    from harness.steering import shared as shared
    from harness.tasks.task import Task as Task

_PAGES: dict[str, tuple[str, ...]] = {
    "harness.data": ("Access", "Demonstration", "Example", "FitData", "Offer", "Pair", "Parameters", "Split"),
    "harness.scoring": (
        *("Estimate", "Evaluator", "Generation", "Grading", "Judge", "Metric"),
        *("Record", "RecordKind", "Score", "Scorer", "Tools", "Verdict"),
    ),
    "harness.steering": (
        *("Artifact", "Carry", "Edit", "Gate", "Gated", "Intervention", "Layout", "Method", "Probe", "Range"),
        *("RowData", "Site", "Stream", "Tokens", "Where", "shared"),
    ),
    "harness.model_view": ("Architecture", "Forward", "KeptStates", "Subject", "TokenCount", "TokenStates"),
    "harness.control": ("Control",),
    "harness.search.search": ("Search",),
    "harness.tasks.task": ("Task",),
}
_PAGE_OF = {name: page for page, names in _PAGES.items() for name in names}


def __getattr__(name: str) -> Any:
    """The name from its own page, imported only now (PEP 562)."""
    if name not in _PAGE_OF:
        raise AttributeError(f"module 'harness.types' has no name {name!r}; it has {', '.join(sorted(_PAGE_OF))}")
    return getattr(importlib.import_module(_PAGE_OF[name]), name)


def __dir__() -> list[str]:
    """Every name, for completion."""
    return sorted(_PAGE_OF)
