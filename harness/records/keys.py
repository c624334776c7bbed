"""What makes two runs the same. Equal keys mean equal results, so that the same command finds its own earlier work.

There are three keys. That of the *generations* covers whatever decides the texts. That of a *run* adds whatever decides
their scores. That of an *entry*, a line of the leaderboard, is a run's without its seed and its evaluators.

A plug-in enters a key by the name of its class, its version, and the fields that differ from their defaults. So a
class may move to another file, and an option may be added at a default that changes nothing: what was computed stays.
Whoever changes what a plug-in puts out bumps its ``version`` by hand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENGINE_VERSION = 1
"""Bump by hand whenever the engine's outputs change."""


def described(value: Any) -> Any:
    """A value as what JSON can hold, plug-ins by class name, version and the fields that differ from their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: described(getattr(value, item.name)) for item in _fields_that_differ(value)}
        return {"class": type(value).__qualname__, "version": getattr(value, "version", 1), **fields}
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(described(item) for item in value)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are one setting, however a file spells it
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def _fields_that_differ(value: Any) -> list[dataclasses.Field]:
    fields = []
    for item in dataclasses.fields(value):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if item.init and (default is dataclasses.MISSING or described(getattr(value, item.name)) != described(default)):
            fields.append(item)
    return fields


def key_of(content: Any) -> str:
    """A short hash of the content; the same on every machine."""
    text = json.dumps(described(content), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Keys:
    """The keys of one run.

    Args:
        made_from: everything that decides the generations; stored beside them.
        generations: its hash, the name of their folder.
        run: generations and scoring together.
        entry: what runs share that differ in their seed alone, or in what they were scored with.
    """

    made_from: Mapping[str, Any]
    generations: str
    run: str
    entry: str

    @classmethod
    def of(cls, made_from: Mapping[str, Any], scored_by: Mapping[str, Any], protocol: Sequence[Any]) -> Keys:
        """The keys of generations that are scored in a certain way.

        Args:
            made_from: everything that decides the generations, ``seed`` among it.
            scored_by: everything else that decides the scores.
            protocol: which examples and which trials count.
        """
        unseeded = {name: value for name, value in made_from.items() if name != "seed"}
        return cls(
            made_from=described(made_from),
            generations=key_of(made_from),
            run=key_of([made_from, scored_by, protocol]),
            entry=key_of([unseeded, protocol]),
        )
