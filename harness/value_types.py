"""Are the values of a configuration of the kinds that its class declares? Checked before anything is built."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (quoted if it looks like a number)",
    types.NoneType: "null",
    Mapping: "a table",
    Sequence: "a list",
}
_LISTS = (list, tuple, Sequence)
_TABLES = (dict, Mapping)


def check_values(node: Any, name: str, find: Callable[[str], Any]) -> None:
    """Raise ValueError for the first value that its field's annotation does not allow.

    Literals and ranges of values are left to the classes, and so is whatever has no plain annotation.

    Args:
        node: a resolved configuration; tables with ``_target_`` are checked against that class.
        name: where it stands, for the message.
        find: turns a dotted path into the class.
    """
    if isinstance(node, list):
        for item in node:
            check_values(item, name, find)
    if not isinstance(node, Mapping):
        return
    hints = _hints(node.get("_target_"), find)
    for key, value in node.items():
        where = f"{name}.{key}"
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(f"{where} must be {_words(hints[key])}, got {value!r}")
        check_values(value, where, find)


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ValueError for the first of these values that is not of its kind."""
    for name, kind in kinds.items():
        if not _fits(values[name], kind):
            raise ValueError(f"{name} must be {_words(kind)}, got {values[name]!r}")


def _hints(target: Any, find: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return get_type_hints(find(target)) if target else {}
    except Exception:  # building it will tell what is wrong with it
        return {}


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, Mapping) and "_target_" in value:
        return hint not in (bool, int, float, str)
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (bool, str, types.NoneType):
        return isinstance(value, origin)
    if origin in _LISTS:
        return isinstance(value, list)
    if origin in _TABLES:
        return isinstance(value, Mapping)
    # A class of the project's own is written as a table with _target_; anything else is not for us to judge.
    return not (isinstance(origin, type) and origin.__module__.startswith("harness."))


def _words(hint: Any) -> str:
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in get_args(hint))
    if origin is Literal:
        return " or ".join(map(str, get_args(hint)))
    found = next((words for kind, words in _WORDS.items() if origin is kind), None)
    if found is None:
        found = "a list" if origin in _LISTS else "a table" if origin in _TABLES else f"a {origin.__name__.lower()}"
    return found
