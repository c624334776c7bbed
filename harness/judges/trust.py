"""How well each version of a judge agrees with readers, kept beside the project and in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.subject.digest import cache_root

LOWEST_KAPPA = 0.6
"""A judge whose interval of Cohen's kappa reaches below this is not trustworthy."""

_SHIPPED = Path(__file__).parent / "data" / "calibrations.json"


def _path(identity: str) -> Path:
    return cache_root() / "calibrations" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def keep(identity: str, calibration: Mapping[str, Any]) -> Path:
    """Store the calibration of one version of a judge in the user's cache, in place of an older one."""
    path = _path(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(dict(calibration), indent=1, ensure_ascii=False), "utf-8")
    draft.replace(path)
    return path


def calibration_of(identity: str) -> dict[str, Any]:
    """What is known about a judge: its calibration in the user's cache, else the shipped one, else that there is none.

    Always holds ``mark``: "trustworthy", "not trustworthy" or "not calibrated".
    """
    path = _path(identity)
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    shipped = json.loads(_SHIPPED.read_text("utf-8")) if _SHIPPED.exists() else {}
    return shipped.get(identity, {"judge": identity, "mark": "not calibrated"})


def mark(lowest_kappa: float | None) -> str:
    """The word for a judge whose kappa may be as low as this."""
    known = lowest_kappa is not None and lowest_kappa >= LOWEST_KAPPA
    return "trustworthy" if known else "not trustworthy"
