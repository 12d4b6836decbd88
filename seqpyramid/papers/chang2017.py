"""Printed results of the Dilated RNN (Chang et al.; NIPS 2017), Tables 1 to 3.

Where a printed line holds two sizes, each is a row here, named by its units. "Counting" in a note is the
number that the model's equations give.
"""

KEY = "chang2017"
TITLE = "Dilated Recurrent Neural Networks"
AUTHORS = (
    "Shiyu Chang, Yang Zhang, Wei Han, Mo Yu, Xiaoxiao Guo, Wei Tan, Xiaodong Cui, Michael Witbrock, "
    "Mark Hasegawa-Johnson, Thomas S. Huang"
)
VENUE = "NIPS 2017"
ARXIV: str | None = "1710.02224"

_TABLE_1 = """
row               | label                              | parameters | MNIST | pMNIST
rnn_256           | Vanilla RNN, 1 layer of 256        | 68k        | -     | 71.6
rnn_9x20          | Vanilla RNN, 9 layers of 20        | 7k         | 49.1  | 88.5
lstm_256          | LSTM, 1 layer of 256               | 270k       | 98.2  | 91.7
lstm_9x20         | LSTM, 9 layers of 20               | 28k        | 98.7  | 89.5
gru_256           | GRU, 1 layer of 256                | 200k       | 99.1  | 94.1
gru_9x20          | GRU, 9 layers of 20                | 21k        | 98.8  | 91.3
irnn              | IRNN                               | 12k        | 97.0  | 82.0
-                 | Full uRNN                          | 270k       | 97.5  | 94.1
skip_rnn          | Skipped RNN, 1 layer of 95         | 16k        | 98.1  | 94.0
skip_rnn_9x20     | Skipped RNN, 9 layers of 20        | 11k        | 85.4  | 91.8
zoneout_lstm      | Zoneout                            | 42k        | -     | 93.1
-                 | Zoneout, recurrent batch norm      | 42k        | -     | 95.9
dilated_cnn_20    | Dilated CNN, 20 units              | 7k         | 98.0  | 95.7
dilated_cnn_50    | Dilated CNN, 50 units              | 46k        | 98.3  | 96.7
dilated_rnn_20    | Dilated Vanilla RNN, 20 units      | 7k         | 97.7  | 95.5
dilated_rnn_50    | Dilated Vanilla RNN, 50 units      | 44k        | 98.0  | 96.1
dilated_lstm_20   | Dilated LSTM, 20 units             | 28k        | 98.9  | 94.2
dilated_lstm_50   | Dilated LSTM, 50 units             | 173k       | 98.9  | 95.4
dilated_gru_20    | Dilated GRU, 20 units              | 21k        | 99.0  | 94.4
dilated_gru_50    | Dilated GRU, 50 units              | 130k       | 99.2  | 94.6
"""

_TABLE_2 = """
row                    | label                      | parameters | PTB
lstm_1000              | LSTM, 1 layer of 1k        | 4.25M      | 1.31
lstm_5x256             | LSTM, 5 layers of 256      | 1.9M       | 1.33
gru_1000               | GRU, 1 layer of 1k         | 3.19M      | 1.32
gru_5x256              | GRU, 5 layers of 256       | 1.42M      | 1.33
bn_lstm                | Recurrent BN-LSTM          | -          | 1.32
recurrent_dropout_lstm | Recurrent dropout LSTM     | 4.25M      | 1.30
zoneout_lstm           | Zoneout                    | 4.25M      | 1.27
ln_hm_lstm             | LayerNorm HM-LSTM          | -          | 1.24
-                      | HyperNetworks, 1 layer     | 4.91M      | 1.26
-                      | HyperNetworks, 2 layers    | 14.41M     | 1.22
dilated_rnn            | Dilated Vanilla RNN        | 0.6M       | 1.37
dilated_lstm           | Dilated LSTM               | 1.9M       | 1.31
dilated_gru            | Dilated GRU                | 1.42M      | 1.27
"""

_TABLE_3_MFCC = """
row      | label                 | parameters | MFCC
gru_5x20 | GRU, 5 layers of 20   | 16k        | .66
gru_128  | GRU, 1 layer of 128   | 68k        | .77
"""

_TABLE_3_RAW = """
row            | label                                 | parameters | raw
fused_gru_32   | Fused GRU, dilation 32                | 225k       | .45
fused_gru_8    | Fused GRU, dilation 8                 | 225k       | .65
dilated_gru_32 | Dilated GRU, 6 layers, from 32 to 1024 | 103k      | .64
dilated_gru_8  | Dilated GRU, 8 layers, from 8 to 1024  | 133k      | .74
"""

TABLES: tuple[tuple[str, str, str], ...] = (
    ("Table 1", "accuracy in %", _TABLE_1),
    ("Table 2", "bpc", _TABLE_2),
    ("Table 3", "accuracy", _TABLE_3_MFCC),
    ("Table 3", "accuracy", _TABLE_3_RAW),
)

_QUOTED = "quoted from other work"
_FOUR = "the printed parameter count fits four layers of 256, not five"

NOTES: dict[tuple[str, str, str], str] = {
    (
        "Table 1",
        "*",
        "LSTM, 1 layer of 256",
    ): "counting gives 266,762 parameters (270k is quoted from other work)",
    ("Table 1", "*", "GRU, 1 layer of 256"): "counting gives 200,714 parameters (printed truncated)",
    ("Table 1", "*", "IRNN"): f"{_QUOTED}; counting gives 11,210 parameters",
    ("Table 1", "*", "Full uRNN"): _QUOTED,
    ("Table 1", "*", "Skipped RNN, 1 layer of 95"): "counting gives 19,200 parameters",
    ("Table 1", "*", "Zoneout"): _QUOTED,
    ("Table 1", "*", "Zoneout, recurrent batch norm"): _QUOTED,
    ("Table 2", "PTB", "LSTM, 5 layers of 256"): _FOUR,
    ("Table 2", "PTB", "GRU, 1 layer of 1k"): "counting gives 3.199M parameters (printed truncated)",
    ("Table 2", "PTB", "GRU, 5 layers of 256"): _FOUR,
    ("Table 2", "PTB", "Recurrent BN-LSTM"): _QUOTED,
    ("Table 2", "PTB", "Recurrent dropout LSTM"): _QUOTED,
    ("Table 2", "PTB", "Zoneout"): _QUOTED,
    ("Table 2", "PTB", "LayerNorm HM-LSTM"): _QUOTED,
    ("Table 2", "PTB", "HyperNetworks, 1 layer"): _QUOTED,
    ("Table 2", "PTB", "HyperNetworks, 2 layers"): f"{_QUOTED}; with layer normalisation",
    ("Table 2", "PTB", "Dilated LSTM"): _FOUR,
    ("Table 2", "PTB", "Dilated GRU"): _FOUR,
    ("Table 3", "*", "*"): (
        "the printed parameter count fits cells without biases and 109 speakers, multi-layer rows with one "
        "more layer than printed, and no fusion matrix"
    ),
}
