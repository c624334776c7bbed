"""JSON that somebody else wrote: whatever is wrong with it is a ValueError that says where it stands."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str, place: str) -> Any:
    """What a JSON text says.

    Args:
        text: the JSON.
        place: where it stands, for messages: a file, or a line of one.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{place} is not JSON: {error.msg} at {line}column {error.colno}") from error
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply to be read as JSON") from None


def parsed_object(text: str, place: str) -> dict[str, Any]:
    """What a JSON object says, as `parsed`.

    Raises:
        ValueError: as `parsed`, and where it is anything but an object.
    """
    value = parsed(text, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(value).__name__}")
    return value
