"""Strict YAML: scalars, lines, refusals, and what is written comes back."""

import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqpyramid import yaml12
from seqpyramid.errors import RecipeError

SCALARS = {
    "null": None, "Null": None, "NULL": None, "~": None, "": None, "nUll": "nUll", "none": "none",
    "true": True, "True": True, "TRUE": True, "tRue": "tRue", "false": False, "FALSE": False,
    "yes": "yes", "no": "no", "on": "on", "Off": "Off", "y": "y", "N": "N",
    "0": 0, "010": 10, "-7": -7, "+12": 12, "0o17": 15, "0x1F": 31, "0b11": "0b11", "1_000": "1_000",
    "0o8": "0o8", "-0o7": "-0o7", "0xg": "0xg", "٣": "٣",
    "1e-3": 1e-3, "1E5": 1e5, "1.": 1.0, ".5": 0.5, "-.5e+2": -50.0, "1.5": 1.5, "1e": "1e", ".": ".", "e3": "e3",
    ".inf": math.inf, "-.Inf": -math.inf, "+.INF": math.inf, "inf": "inf", ".iNF": ".iNF", "nan": "nan",
    "1:30": "1:30", "190:20:30.15": "190:20:30.15", "2024-01-01": "2024-01-01", "<<": "<<", "=": "=",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_plain_scalars_follow_the_core_schema(text: str) -> None:
    read = yaml12.load(f"key: {text}", "a.yaml").data["key"]
    assert (type(read), read) == (type(SCALARS[text]), SCALARS[text])
    assert yaml12.load(f"key: '{text}'", "a.yaml").data["key"] == text


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan_is_a_float(text: str) -> None:
    assert math.isnan(yaml12.load(f"key: {text}", "a.yaml").data["key"])


def test_merge_key_is_an_ordinary_key() -> None:
    assert yaml12.load("a: {<<: {b: 1}, c: 2}", "a.yaml").data == {"a": {"<<": {"b": 1}, "c": 2}}


def test_lines_of_keys_items_and_what_is_not_there() -> None:
    document = yaml12.load(
        "a: 1\n# comment\nb:\n  c:\n  - 1\n  - {d: 2}\n\n  e: {f: 3,\n    g: 4}\n", "a.yaml"
    )
    lines = {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 5,
        ("b", "c", 1): 6,
        ("b", "c", 1, "d"): 6,
        ("b", "e", "f"): 8,
    }
    lines |= {("b", "e", "g"): 9, ("b", "e", "unknown"): 8, ("b", "e", "f", "x", 3): 8, ("unknown", "b"): 1}
    assert {path: document.line(path) for path in lines} == lines


REFUSED: dict[str, tuple[str | bytes, list[str]]] = {
    "duplicate": ("a: 1\nb: {c: 1,\n  c: 2}\na: 3\n", ["a.yaml:3: b.c: duplicate key, already given on line 2",
                                                       "a.yaml:4: a: duplicate key, already given on line 1"]),
    "duplicate by another spelling": ('a: 1\n"a": 2\n', ["a.yaml:2: a: duplicate key"]),
    "integer key": ("a: 1\n1: 2\n", ["a.yaml:2: the key 1 is not text"]),
    "null key": ("a:\n  ~: 2\n", ["a.yaml:2: a: the key null is not text"]),
    "boolean key": ("true: 2\n", ["a.yaml:1: the key true is not text"]),
    "list key": ("? [a, b]\n: 2\n", ["a.yaml:1: the key a list is not text"]),
    "list root": ("\n- 1\n", ["a.yaml:2: a mapping of keys to values is due, not a list"]),
    "text root": ("hello\n", ["a.yaml:1: a mapping of keys to values is due, not 'hello'"]),
    "nothing": ("# only a comment\n", ["a.yaml:1: a mapping of keys to values is due, not null"]),
    "python tag": ("a: 1\nb: !!python/object/apply:os.system ['exit 3']\n", ["a.yaml:2: the tag tag:yaml.org"]),
    "harmless tag": ("b: !!str 3\n", ["a.yaml:1: the tag"]),
    "local tag": ("b: !include x\n", ["a.yaml:1: the tag !include"]),
    "anchor": ("a: &x 1\n", ["a.yaml:1: anchors and aliases"]),
    "alias": ("a: 1\nb: *x\n", ["a.yaml:2: anchors and aliases"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["a.yaml:2: not valid YAML"]),
    "syntax": ("a: 1\nb: [1, 2\nc: 3\n", ["a.yaml:3: not valid YAML"]),
    "tab": ("a:\n\tb: 1\n", ["a.yaml:2: not valid YAML"]),
    "control character": ("a: 1\nb: \x07\n", ["a.yaml:2: the character U+0007"]),
    "not UTF-8": (b"a: 1\nb: caf\xe9\n", ["a.yaml:2: byte 0xe9 is not UTF-8"]),
    "escape out of range": ('a: 1\nb: "\\UFFFFFFFF"\n', ["a.yaml:2: an escape"]),
    "surrogate": ('a: 1\nb: "\\ud800"\n', ["a.yaml:2: half a surrogate pair"]),
    "endless integer": ("a: 1\nb: " + "9" * 5000, ["a.yaml:2: an integer beyond 64 bits"]),
    "hexadecimal integer": ("a: 0x" + "f" * 16, ["a.yaml:1: an integer beyond 64 bits"]),
    "too deep": ("a: " + "[" * 10_000, ["a.yaml:1: nested more than 40 levels"]),
    "too long": ("a: 1\n" * 60_000, ["a.yaml:1: longer than 256 KiB"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_with_its_place(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        yaml12.load(text, "a.yaml")
    assert len(caught.value.problems) == len(expected)
    for problem, beginning in zip(caught.value.problems, expected, strict=True):
        assert problem.startswith(beginning)
        assert problem.isprintable()


def test_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    with pytest.raises(RecipeError, match="anchors and aliases"):
        yaml12.load(bomb, "a.yaml")


def test_bytes_with_a_byte_order_mark_and_windows_line_ends() -> None:
    document = yaml12.load("\ufeffa: é\r\nb: 2\r\n".encode(), "a.yaml")
    assert (document.data, document.line(("b",))) == ({"a": "é", "b": 2}, 2)


@pytest.mark.parametrize("text", ["", "  ", "# x", "---"])
def test_override_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^override: no value is given; write null"):
        yaml12.value(text, "override")


def test_override_values() -> None:
    assert [yaml12.value(t, "override") for t in ("''", "null", "{a: [1, b]}", "no")] == [
        "",
        None,
        {"a": [1, "b"]},
        "no",
    ]


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(list(SCALARS)),
    st.text(alphabet="0123456789.eExo-+_:~#&*!|>'\"%@`{}[], \n\t\x85\u2028\ufeff\xa0\U0001f600", max_size=12),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63) + 1, 2**63 - 1),
        st.floats(allow_nan=False),
        TEXTS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)  # repr tells 1 from 1.0 and True, and 0.0 from -0.0


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
@example({"k" * 200: ["x" * 200, "a b " * 60], "": {}, "e": []})
@example({"digits": "1" * 5000, "float": "1" * 500 + "e5"})
def test_what_is_dumped_is_read_back(data: dict[str, object]) -> None:
    written = yaml12.dump(data)
    read = yaml12.load(written.encode(), "a.yaml").data
    assert same(read, data)
    assert yaml12.dump(read) == written


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abcdefgh", min_size=1), VALUES, max_size=4))
def test_numbers_and_text_mean_the_same_to_a_yaml_1_1_reader(data: dict[str, object]) -> None:
    assert same(yaml.safe_load(yaml12.dump(data)), data)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.binary(max_size=40),
        st.text("ab:-?[]{},&*!|>'\"%@ \n\t#\\uUx~.0", max_size=30),
    )
)
@example("%YAML " + "1" * 5000 + ".1\n---\na: 1")
@example('"\\U00110000": 1')
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        problems, data = [], yaml12.load(text, "a.yaml").data
    except RecipeError as error:
        problems, data = error.problems, {}
    assert all(problem.startswith("a.yaml:") and problem.isprintable() for problem in problems)
    assert isinstance(data, dict)


def test_tuples_become_lists_and_shared_values_are_written_twice() -> None:
    shared = [1, 2]
    assert yaml12.dump({"a": (1, 2), "b": shared, "c": shared}) == "a: [1, 2]\nb: [1, 2]\nc: [1, 2]\n"
