"""Keys: equal inputs give equal keys, so that the same command finds its own earlier work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

ENGINE_VERSION = 1
"""Bump by hand whenever the engine's outputs change."""


def plain(value: Any) -> Any:
    """Dataclasses, tuples, sets and mappings as what JSON can hold, classes named by their dotted path and version."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
        kind = type(value)
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "version": getattr(value, "version", 1), **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def key_of(content: Any) -> str:
    """A short hash of the content; the same on every machine."""
    text = json.dumps(plain(content), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
