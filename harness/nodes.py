"""From the nodes of a configuration to objects, with values and classes checked against the places where they stand.

A node is what a YAML holds: a table with ``_target_`` names a class, and its other entries are the class's fields.
Types are checked by pydantic, strictly: "3" is no number and 1 is not true.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text (quoted if it looks like a number)",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
}
"""What a value must be, by the kind of pydantic's complaint."""


Packages = frozenset[str] | None


def built(node: Any, expected: Any, name: str, *, packages: Packages = None) -> Any:
    """The object that a node stands for.

    Args:
        node: plain values, as a YAML holds them.
        expected: the type of its place, e.g. ``Method`` or ``float | Range``.
        name: its place, for messages.
        packages: whose classes may be named, for nodes from somebody else's file; None for any.

    Raises:
        ValueError: a value is not of its type, there is no such option, or ``_target_`` is not a class that may stand
            here; the message says which, what was found and what is allowed.
    """
    if isinstance(node, Mapping) and "_target_" in node:
        return _object(node, expected, name, packages)
    if isinstance(node, Mapping):
        inner = _item_type(expected, (dict, Mapping), -1)
        node = {key: built(item, inner, f"{name}.{key}", packages=packages) for key, item in node.items()}
    elif isinstance(node, list | tuple):
        inner = _item_type(expected, (list, tuple, Sequence), 0)
        items = [built(item, inner, f"{name}[{i}]", packages=packages) for i, item in enumerate(node)]
        is_tuple = any(get_origin(option) is tuple for option in _options(expected))
        node = tuple(items) if is_tuple else items
    return _checked(node, expected, name)


def _object(node: Mapping[str, Any], expected: Any, name: str, packages: Packages) -> Any:
    kind = class_of(str(node["_target_"]), expected, name, packages=packages)
    hints = _field_types(kind)

    if unknown := [str(key) for key in node if key != "_target_" and key not in hints]:
        close = difflib.get_close_matches(unknown[0], hints, 1)
        hint = f"; did you mean {close[0]}?" if close else f" (it has {', '.join(hints) or 'none'})"
        raise ValueError(f"{name}: there is no option {unknown[0]!r}{hint}")

    values = {
        str(key): built(value, hints[key], f"{name}.{key}", packages=packages)
        for key, value in node.items()
        if key != "_target_"
    }
    try:
        return kind(**values)
    except Exception as error:  # whatever a plug-in's own checks raise is a mistake in its settings
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error


def class_of(path: str, expected: Any, name: str, *, packages: Packages = None) -> type:
    """The class that ``_target_`` names, if it may stand in its place.

    Raises:
        ValueError: there is no such class, or it is of another kind.
    """
    module, _, attribute = path.rpartition(".")
    if packages is not None and module.partition(".")[0] not in packages:
        raise ValueError(f"{name}._target_ must name a class of an installed package, got {path!r}")
    try:
        named = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}._target_: there is no {path!r} ({error})") from error

    kinds = [option for option in _options(expected) if inspect.isclass(option)]
    if not inspect.isclass(named) or not any(_is_a(named, kind) for kind in kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds if kind not in (bool, int, float, str, type(None)))
        raise ValueError(f"{name}._target_ must name a class that is a {allowed or 'plain value'}, got {path!r}")
    return named


def _is_a(candidate: type, kind: type) -> bool:
    if Protocol not in kind.__bases__:
        return issubclass(candidate, kind)
    # A protocol is met by whoever has its members; fields of dataclasses need not be attributes of the class.
    members = {name for name in (*vars(kind), *get_type_hints(kind)) if not name.startswith("_")}
    return members <= {*dir(candidate), *get_type_hints(candidate)}


@cache
def installed_packages() -> frozenset[str]:
    """Top-level packages that pip has installed, and those of the project itself."""
    return frozenset({*importlib.metadata.packages_distributions(), "harness", "methods", "evaluators"})


@cache
def _field_types(kind: type) -> Mapping[str, Any]:
    """The types of what may be given to a class, by name."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
    hints = get_type_hints(kind.__init__)
    names = [name for name in inspect.signature(kind).parameters if name != "self"]
    return {name: hints.get(name, Any) for name in names}


def _options(expected: Any) -> tuple[Any, ...]:
    """The types that a union allows; the type itself if it is none."""
    if get_origin(expected) in (Union, types.UnionType):
        return tuple(option for part in get_args(expected) for option in _options(part))
    return (expected,)


def _item_type(expected: Any, containers: tuple[Any, ...], place: int) -> Any:
    """The type of the items of whichever container the place allows; anything if it allows none."""
    for option in _options(expected):
        origin = get_origin(option)
        arguments = get_args(option)
        if arguments and isinstance(origin, type) and issubclass(origin, tuple(map(_runtime, containers))):
            return arguments[place]
    return Any


def _runtime(container: Any) -> type:
    return get_origin(container) or container


def _checked(value: Any, expected: Any, name: str) -> Any:
    """The value as its field's type has it (a whole number becomes a float where one is due)."""
    if expected is Any:
        return value
    # Asked here, for the rules of `_adapter` would take null for any dataclass.
    if value is None and dataclasses.is_dataclass(expected):
        raise ValueError(f"{name} must be a {getattr(expected, '__name__', 'table')}, got null")
    try:
        return _adapter(expected).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name} must be {_words(error, expected)}, got {value!r}") from None


@cache
def _adapter(expected: Any) -> TypeAdapter:
    rules = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    if dataclasses.is_dataclass(expected):  # pydantic takes no rules of ours for a class that could have its own
        expected = Union[expected, None]  # noqa: UP007
    return TypeAdapter(expected, config=rules)


def _words(error: ValidationError, expected: Any) -> str:
    """What is allowed, from everything that pydantic tried."""
    words: list[str] = []
    for problem in error.errors():
        if problem["type"] == "literal_error":
            literals = [option for option in _options(expected) if get_origin(option) is Literal]
            choices = [str(choice) for literal in literals for choice in get_args(literal)]
            words.append(f"one of {', '.join(choices)}")
        elif class_name := problem.get("ctx", {}).get("class_name") or problem.get("ctx", {}).get("class"):
            words.append(f"a {str(class_name).lower()}")
        else:
            words.append(_WORDS.get(problem["type"], problem["msg"].removeprefix("Input should be ")))
    if any(option is type(None) for option in _options(expected)):
        words.append("null")
    return " or ".join(dict.fromkeys(words))
