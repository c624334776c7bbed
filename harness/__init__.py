"""Compare activation-steering methods.

From Python, the verbs are ``load``, ``fit``, ``compare`` and ``load_vector``; nothing is imported before one is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads of OpenMP wait for one another by spinning for milliseconds. Where other work shares the cores they spin
# while the thread that they wait for gets no core, and a run takes several times as long. So they go to sleep after a
# few microseconds. OpenMP reads this when torch is loaded; whoever sets either variable decides. Measured in
# BENCHMARKS.md, "Busy neighbours".
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from harness.api.comparing import Result, compare
    from harness.api.fitted import Fitted, Steer, fit, load_vector
    from harness.api.model import Model, load

__all__ = ["Fitted", "Model", "Result", "Steer", "compare", "fit", "load", "load_vector"]

_HOMES = {
    "Fitted": "fitted",
    "Model": "model",
    "Result": "comparing",
    "Steer": "fitted",
    "compare": "comparing",
    "fit": "fitted",
    "load": "model",
    "load_vector": "fitted",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(f"harness.api.{_HOMES[name]}"), name)
