"""Strict YAML: the scalars of YAML 1.2's core schema, no tags, no anchors, and a line number for every key.

Source: YAML 1.2.2, section 10.3.2 (tag resolution of the core schema). A plain scalar is null, a boolean, an
integer or a float only in the spellings listed there; everything else is text, so ``no``, ``on``, ``12:30``
and ``2024-01-01`` are text, ``010`` is ten and ``1e-3`` is a number. Refused, because a recipe has no use for
them and each can hide something: tags, anchors and aliases (so no alias bombs), keys given twice, keys that
are not text, integers beyond 64 bits, several documents in one file. ``<<`` is an ordinary key.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from seqpyramid.errors import RecipeError

MAX_BYTES = 256 * 1024
"""Recipes are a few kilobytes; the parser needs seconds for more than this."""
MAX_DEPTH = 40
"""Levels of nesting; composing recurses once a level."""
MAX_INTEGER = 2**63 - 1

Path = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_TRUE = re.compile(r"(?:true|True|TRUE)")
_FALSE = re.compile(r"(?:false|False|FALSE)")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?(?:\.inf|\.Inf|\.INF)")
_NAN = re.compile(r"(?:\.nan|\.NaN|\.NAN)")


@dataclass(frozen=True)
class Document:
    """One file, read."""

    data: dict[str, Any]
    """Plain Python: dict, list, str, int, float, bool, None."""
    filename: str
    lines: dict[Path, int]
    """Line (from 1) of every key and list entry."""

    def line(self, path: Path) -> int:
        """Line (from 1) on which ``path`` is written, or else its nearest ancestor that is written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def load(text: str | bytes, filename: str) -> Document:
    """Read one mapping.

    Args:
        text: the file's content; bytes must be UTF-8.
        filename: how messages call the file.

    Raises:
        RecipeError: it is no strict YAML mapping; each problem is one line that begins ``filename:line:``.

    >>> load("train: {lr: 1e-3, order: no}", "a.yaml").data
    {'train': {'lr': 0.001, 'order': 'no'}}
    """
    reading = _Reading(text, lambda line: f"{filename}:{line}")
    if not isinstance(reading.data, dict):
        raise RecipeError(
            f"{filename}:{reading.line}: a mapping of keys to values is due, not {name_value(reading.data)}"
        )
    return Document(reading.data, filename, reading.lines)


def value(text: str, place: str) -> Any:
    """Read one value of any kind, as the right-hand side of an override.

    Args:
        text: the value as typed.
        place: how messages begin.

    Raises:
        RecipeError: it is empty or no strict YAML.

    >>> value("2e-3", "override"), value("[1, 0x10]", "override"), value("yes", "override")
    (0.002, [1, 16], 'yes')
    """
    reading = _Reading(text, lambda line: place)
    if reading.empty:
        raise RecipeError(f"{place}: no value is given; write null if that is meant")
    return reading.data


def dump(data: Any) -> str:
    """Write plain Python as YAML that :func:`load` reads back unchanged; tuples become lists.

    Text that YAML 1.1 or 1.2 would read as something else is quoted, and floats are written so that readers
    of either version see a float.

    >>> print(dump({"lr": 1e-5, "order": "no", "skips": [1, 2], "code": "1e-3"}), end="")
    lr: 1.0e-05
    order: 'no'
    skips: [1, 2]
    code: '1e-3'
    """
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def read_scalar(text: str) -> str | int | float | bool | None:
    """Read a plain scalar by the core schema.

    Raises:
        ValueError: an integer has more digits than Python converts.

    >>> [read_scalar(t) for t in ("010", "0o10", "0x1F", "1.", "-.5e1", "true", "yes", "~", "1_000", "1:30")]
    [10, 8, 31, 1.0, -5.0, True, 'yes', None, '1_000', '1:30']
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text[0] in "tT"
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return -math.inf if text[0] == "-" else math.inf
    if _NAN.fullmatch(text):
        return math.nan
    return text


def one_line(text: str, limit: int = 60) -> str:
    r"""Shorten text for a message and escape what would break its line.

    >>> one_line("a\nb")
    'a\\nb'
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def name_value(value: Any) -> str:
    """Name a value in a message, as the user wrote it rather than as Python prints it.

    >>> [name_value(v) for v in (None, True, "x", 0.5, [1], {})]
    ['null', 'true', "'x'", '0.5', 'a list', 'a mapping']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"'{one_line(value)}'"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return repr(value)


class _Fault(Exception):  # noqa: N818 (not an error of its own: turned into a RecipeError here)
    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line, self.sentence = line, sentence


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses anchors, aliases, tags and deep nesting before they are followed."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise _Fault(
                line, "anchors and aliases (& and *) are not read; write the value out, or quote it as text"
            )
        if getattr(event, "tag", None) is not None:
            raise _Fault(line, f"the tag {one_line(str(event.tag))} is not read; write the plain value")
        if self.depth == MAX_DEPTH:
            raise _Fault(line, f"nested more than {MAX_DEPTH} levels deep; no recipe needs that")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reading:
    """The outcome of reading one text: data, lines, and whether there was anything at all."""

    def __init__(self, text: str | bytes, place: Callable[[int], str]) -> None:
        self.lines: dict[Path, int] = {}
        self._faults: list[_Fault] = []
        self.data: Any = None
        self.line = 1
        try:
            node = _compose(_decode(text))
            self.empty = node is None or (
                isinstance(node, yaml.ScalarNode) and not node.value and node.style is None
            )
            if node is not None:
                self.line = _line(node)
                self.data = self._construct(node, ())
        except _Fault as fault:
            self._faults.append(fault)
        if self._faults:
            raise RecipeError([f"{place(fault.line)}: {fault.sentence}" for fault in self._faults])

    def _construct(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.lines[*path, index] = _line(item)
                items.append(self._construct(item, (*path, index)))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            key = self._construct(key_node, path)
            if not isinstance(key, str):
                self._fault(line, path, f"the key {name_value(key)} is not text; put it in quotes")
                continue
            if key in content:
                first = self.lines[*path, key]
                self._fault(
                    line, (*path, key), f"duplicate key, already given on line {first}; keep one of the two"
                )
                continue
            self.lines[*path, key] = line
            content[key] = self._construct(value_node, (*path, key))
        return content

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if node.style is not None:  # quoted or block: always text
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise _Fault(_line(node), "half a surrogate pair is no character; write the character itself")
            return text
        try:
            read = read_scalar(text)
        except ValueError:
            read = MAX_INTEGER + 1
        if isinstance(read, int) and abs(read) > MAX_INTEGER:
            raise _Fault(_line(node), "an integer beyond 64 bits is no sensible value; mend it")
        return read

    def _fault(self, line: int, path: Path, sentence: str) -> None:
        where = ".".join(one_line(str(part)) for part in path)
        self._faults.append(_Fault(line, f"{where}: {sentence}" if where else sentence))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _decode(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise _Fault(1, f"longer than {MAX_BYTES // 1024} KiB, so this is no recipe")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _Fault(line, f"byte 0x{text[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _compose(text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise _Fault(line, f"the character {code} cannot stand in YAML; remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = one_line(error.problem or error.context or "no reason given", 120)
        raise _Fault(
            mark.line + 1 if mark else 1, f"not valid YAML ({reason}); mend this line or the one above"
        ) from None
    except (ValueError, OverflowError):
        # PyYAML lets chr() and int() speak for "\UFFFFFFFF" and for a version of thousands of digits.
        line = loader.line + 1 if loader else 1
        raise _Fault(line, "an escape or a number here is out of range; mend this line") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Dumper(yaml.SafeDumper):
    """Writes every value out, short lists on one line, and text so that it stays text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    if not text.isprintable():
        style = '"'  # line breaks of YAML 1.1 (U+0085, U+2028) are folded unless they are escaped
    elif not _reads_as_text(text):
        style = "'"
    else:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _reads_as_text(text: str) -> bool:
    try:
        return isinstance(read_scalar(text), str)
    except ValueError:
        return False


def _represent_list(dumper: yaml.SafeDumper, items: list[Any] | tuple[Any, ...]) -> yaml.Node:
    short = not any(isinstance(item, list | tuple | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


def _represent_mapping(dumper: yaml.SafeDumper, content: dict[str, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", content, flow_style=not content)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(dict, _represent_mapping)
