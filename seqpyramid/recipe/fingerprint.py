"""From a checked section to plain values, and to the digest of those that move a number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def as_plain(section: BaseModel) -> dict[str, Any]:
    """Return a section as JSON holds it, every default written out; validation reads it back unchanged."""
    return section.model_dump(mode="json", round_trip=True)


def canonical(section: BaseModel) -> dict[str, Any]:
    """Return what is hashed of a section: its code's version and the plain values that move a number."""
    return {"version": getattr(type(section), "version", 1), "config": _counted(section)}


def _counted(section: BaseModel) -> dict[str, Any]:
    """Return the plain section without the fields that move no number."""
    plain = as_plain(section)
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        value = getattr(section, name)
        if isinstance(extra, dict) and extra.get("fingerprint") is False:
            del plain[name]
        elif isinstance(value, BaseModel):
            plain[name] = _counted(value)
        elif isinstance(value, tuple | list):
            pairs = zip(value, plain[name], strict=True)
            plain[name] = [_counted(item) if isinstance(item, BaseModel) else as_is for item, as_is in pairs]
    return plain


def digest(content: Any) -> str:
    """Return the first 16 hex digits of SHA-256 over canonical JSON: sorted keys, no spaces, floats by ``repr``."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
