"""The command measures what its options ask for, and prints it."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from benchmarks import command, speed
from benchmarks.candidates import references, rows
from benchmarks.limit import Rate
from benchmarks.rounds import Pair
from benchmarks.speed import known_pairs, main
from benchmarks.untuned import AS_IT_COMES, Order
from seqpyramid.recipe import load


@pytest.fixture(autouse=True)
def _untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets this process's allocator and floating point for good; a test must not."""
    monkeypatch.setattr(command, "tune_process", lambda: None)


def first_cells(text: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]


def test_every_table_has_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([Rate(1e9, (1, 1, 1)), Rate(4e9, (1, 1, 1))])
    monkeypatch.setattr(speed, "best_rates", lambda *_: {"1 thread": next(times)})
    small = ["--batch", "2", "--time", "50", "--rounds", "1"]
    asked = ["--twins", "--naive", "--limit", "--busy", "1", "--against", "dilated_lstm=lstm_s"]
    assert main(["--models", "lstm_s", "dilated_lstm", *small, *asked]) == 0
    out = capsys.readouterr().out
    main_table, pairs, shares, beside = out.split("\n\n|")[1:]
    reference = ["torch.nn.LSTM(1,100)", "torch.nn.LSTM(1,100), three layers"]
    naive = ["dilated_lstm, naive form"]
    naive += ["dilated_lstm, every step read", "dilated_lstm, every step read, naive form"]
    rows = [*reference, "lstm_s", "dilated_lstm", "lstm_s, plain", "dilated_lstm, plain", *naive]
    assert first_cells(main_table) == rows
    assert first_cells(shares) == rows
    assert "4 GFLOP/s on 1 thread" in out
    assert first_cells(pairs) == [
        "lstm_s",
        "dilated_lstm",
        "dilated_lstm",
        "dilated_lstm, every step read",
        "dilated_lstm",
    ]
    assert first_cells(beside) == [reference[0], "lstm_s", "dilated_lstm"]
    assert "beside 1 busy process:" in out


def test_both_states_of_the_allocator_stand_in_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stand:
        freed_buffers = "somewhere"

        def __init__(self, order: Order) -> None:
            assert (order.recipe, order.models) == ("pmnist", ("lstm_s",))
            everyone = references(order.setting)[:1] + rows(load(order.recipe), order.models, order.setting)
            self.candidates = [replace(one, name=one.name + AS_IT_COMES) for one in everyone]

        def cpu_seconds(self) -> float:
            return 0.0

    monkeypatch.setattr(speed, "as_torch_comes", lambda order: nullcontext(Stand(order)))
    assert main(["--models", "lstm_s", "--batch", "2", "--time", "50", "--rounds", "1", "--both"]) == 0
    out = capsys.readouterr().out
    assert "As torch comes, in a process of its own: freed buffers somewhere." in out
    assert "| lstm_s | torch.nn.LSTM(1,100), as torch comes | " in out


def test_pairs_follow_from_the_names() -> None:
    names = ["nn", "a", "a:b=1", "a, plain", "a, naive form", "b", "nn, as torch comes", "a, as torch comes"]
    assert known_pairs(names, "nn") == [
        Pair("a", "a, plain"),
        Pair("a", "a, naive form"),
        Pair("a:b=1", "a"),
        Pair("nn", "nn, as torch comes"),
        Pair("a", "nn, as torch comes"),
        Pair("a, as torch comes", "nn, as torch comes"),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "abacus"], "--device abacus"),
        (["--both", "--untuned"], "leave --untuned out"),
        (["--models", "lstm_x"], "lstm_x"),
        (["--naive", "--models", "lstm_s"], "none of lstm_s is a Dilated RNN"),
        (["--public", "hasty"], "--public hasty: no adapter has this name"),
    ],
)
def test_a_wrong_option_ends_with_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.out == ""


def test_a_pair_of_unknown_rows_is_refused_before_the_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_, **__: pytest.fail("measured first"))
    assert main(["--models", "lstm_s", "--against", "lstm_s=b"]) == 2
    assert "--against lstm_s=b: 'b' is not measured here" in capsys.readouterr().err
