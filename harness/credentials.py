"""Credentials that stand in addresses, kept out of whatever is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s'\"]+@", re.IGNORECASE)
_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|password|signature|auth)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def without_credentials(value: Any) -> Any:
    """A text, or plain values, in which no address holds a user, a password, or a key in its query.

    ``http://user:pass@host/v1?api-key=K&b=1`` becomes ``http://host/v1?api-key=***&b=1``.
    """
    if isinstance(value, str):
        return _SECRET.sub(r"\1***", _USER.sub(r"\1", value))
    if isinstance(value, Mapping):
        return {name: without_credentials(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_credentials(item) for item in value)
    return value
