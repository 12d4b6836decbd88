"""Check one section against its class, and put what pydantic finds into plain words at the key path it concerns."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from seqpyramid.recipe.faults import Faults
from seqpyramid.recipe.places import KeyPath
from seqpyramid.recipe.walk import classes_in, descend, nearest_key
from seqpyramid.registry import near_miss
from seqpyramid.yaml12 import name_value, one_line

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

S = TypeVar("S", bound=BaseModel)

_DUE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""What pydantic missed, by the type of its error; fills ``must be ..., not ...``."""


def check_section(cls: type[S], raw: dict[str, Any], path: KeyPath, faults: Faults) -> S | None:
    """Build one section; None, and its faults noted, where it is wrong."""
    try:
        # By way of JSON, because strict validation of Python values would refuse a list for a tuple.
        return cls.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        due: dict[KeyPath, list[str]] = {}
        got: dict[KeyPath, str] = {}
        for detail in error.errors(include_url=False):
            where = _where(detail, raw)
            if detail["type"] in _DUE:
                due.setdefault(where, []).append(_DUE[detail["type"]].format(**detail.get("ctx", {})))
                got[where] = _got(detail, due[where], _variants(cls, raw, (*where, "name")))
            elif detail["type"] != "conflict":  # those are found beside wrong types, not only without them
                faults.add((*path, *where), _sentence(detail, where, cls, raw))
        for where, expected in due.items():  # a union complains once a branch: one sentence for all of them
            faults.add((*path, *where), f"must be {' or '.join(dict.fromkeys(expected))}, not {got[where]}")
        return None


def _got(detail: ErrorDetails, expected: list[str], variants: list[str]) -> str:
    value = detail["input"]
    if isinstance(value, str) and value in variants:
        return f"{name_value(value)}; write {{name: {one_line(value)}}}"
    if detail["type"] == "string_type" and isinstance(value, bool | int | float):
        return f"{name_value(value)}; put it in quotes"
    hint = near_miss(value, re.findall(r"'([^']*)'", expected[-1])) if isinstance(value, str) else ""
    return f"{name_value(value)}{hint}"


def _sentence(detail: ErrorDetails, where: KeyPath, cls: type[BaseModel], raw: Any) -> str:
    context = detail.get("ctx", {})
    variants = _variants(cls, raw, where) if detail["type"].startswith("union_tag") else []
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key{nearest_key(str(where[-1]), descend(cls, raw, where[:-1]))}"
        case "missing":
            return (
                "missing entry; the list is too short"
                if isinstance(where[-1], int)
                else "missing key; add it"
            )
        case "finite_number":
            return f"{name_value(detail['input'])} is not a finite number"
        case "too_short":
            return f"needs at least {context['min_length']} entry, has {context['actual_length']}"
        case "too_long":
            return f"takes at most {context['max_length']} entries, has more"
        case "string_too_short":
            return "must not be empty"
        case "union_tag_not_found":
            return f"missing key (known: {', '.join(variants)})"
        case "union_tag_invalid":
            tag = context["tag"]
            return f"nothing is called {name_value(tag)}{near_miss(tag, variants)} (known: {', '.join(variants)})"
        case "value_error" | "assertion_error":
            return one_line(str(context["error"]), 300)
        case _:
            return one_line(detail["msg"].replace("Input should be", "must be"), 300)


def _where(detail: ErrorDetails, raw: Any) -> KeyPath:
    """Turn pydantic's location into a key path: drop the labels with which it tells the branches of a union."""
    path: list[str | int] = []
    labelled = True  # the section's own class was chosen by its name already
    last = len(detail["loc"]) - 1
    for index, part in enumerate(detail["loc"]):
        if isinstance(raw, dict):
            if index < last and not labelled and part == raw.get("name"):
                labelled = True
                continue
            if part in raw:
                raw, labelled = raw[part], False
                path.append(part)
            elif index == last and detail["type"] == "missing":
                path.append(part)
        elif isinstance(raw, list) and isinstance(part, int):
            raw, labelled = (raw[part] if part < len(raw) else None), False
            path.append(part)
    if detail["type"].startswith("union_tag"):
        path.append("name")
    return tuple(path)


def _variants(cls: type[BaseModel], raw: Any, where: KeyPath) -> list[str]:
    """Return the names to choose from at ``where``, which ends in ``name``."""
    field = where[:-1]
    while field and isinstance(field[-1], int):
        field = field[:-1]
    owner = descend(cls, raw, field[:-1])
    known = classes_in(owner.model_fields[str(field[-1])].annotation) if owner and field else ()
    return [variant.model_fields["name"].default for variant in known if "name" in variant.model_fields]
