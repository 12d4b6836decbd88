"""Rounds of candidates, and the tables of what they gave."""

import pytest
import torch

from benchmarks.candidates import Candidate, Setting, candidate, references
from benchmarks.rounds import Measured, Pair, Row, compare, measure, pair_table, parse_pairs, table
from seqpyramid.analysis.speed import Ratio, ReferenceLSTM, Timing
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError

CPU = torch.device("cpu")
SPEC = TaskSpec(input_size=2, outputs=3)
SETTING = Setting(spec=SPEC, batch_size=2, time=3, device=CPU)

MEASURED = Measured(
    {"a": [0.1, 0.2, 0.3], "b": [0.2, 0.2, 0.9]}, {"a": [1.0, 1.0, 1.0], "b": [0.5, 1.0, 2.0]}
)


def test_every_model_is_compared_with_the_reference() -> None:
    everyone = [*references(SETTING), candidate("twin", ReferenceLSTM(SPEC), SETTING)]
    rows = compare(everyone, measure(everyone, rounds=4, device=CPU), SETTING.reference)
    assert [row.name for row in rows] == [
        "torch.nn.LSTM(2,100)",
        "torch.nn.LSTM(2,100), three layers",
        "twin",
    ]
    assert rows[0].train.median == rows[0].inference.median == 1.0
    assert [row.parameters for row in rows] == [one.parameters for one in everyone]
    assert {ratio.seconds.n for row in rows for ratio in (row.train, row.inference)} == {4}


def test_one_round_is_everyones_turn() -> None:
    seen: list[str] = []

    def one(name: str) -> Candidate:
        return Candidate(
            name=name,
            parameters=0,
            training=lambda: seen.append(f"train {name}"),
            inference=lambda: seen.append(f"run {name}"),
            forward_flops=None,
        )

    measure([one("a"), one("b")], rounds=1, device=CPU)
    assert seen == ["train a", "train b"] * 3 + ["run a", "run b"] * 3


def test_one_name_for_two_is_refused() -> None:
    one = candidate("a", ReferenceLSTM(SPEC), SETTING)
    with pytest.raises(RecipeError, match="'a' is named twice"):
        measure([one, one], rounds=1, device=CPU)


def test_the_table_gives_sequences_a_second() -> None:
    train = Ratio(median=0.5, min=0.4, max=0.6, seconds=Timing(0.1, 0.1, 0.2, 5))
    inference = Ratio(median=2.0, min=1.0, max=3.0, seconds=Timing(0.02, 0.01, 0.2, 5))
    text = table([Row("tp", 12345, train, inference)], batch_size=128)
    assert text.splitlines()[2] == "| tp | 12,345 | 1,280 | 0.50 (0.40-0.60) | 6,400 | 2.00 (1.00-3.00) |"


def test_a_pair_is_compared_round_by_round() -> None:
    # within the rounds a is 2, 1 and 3 times as fast: the median is not that of the seconds
    text = pair_table([Pair("a", "b"), Pair("a", "b")], MEASURED)
    assert text.splitlines()[2:] == ["| a | b | 2.00 (1.00-3.00) | 1.00 (0.50-2.00) |"]


def test_pairs_are_read_from_the_command_line() -> None:
    names = ["hm_lstm", "torch.nn.LSTM(1,100), three layers"]
    assert parse_pairs(["hm_lstm=torch.nn.LSTM(1,100), three layers"], names) == [Pair(*names)]
    named = ["lstm_s:recompute=true", "lstm_s"]
    assert parse_pairs(["lstm_s:recompute=true=lstm_s"], named) == [Pair(*named)]
    for text, missing in (("hm_lstm=lstm", "'lstm'"), ("hm_lstm", "''"), ("x=hm_lstm", "'x'")):
        with pytest.raises(RecipeError, match=f"--against {text}: {missing} is not measured here"):
            parse_pairs([text], names)
