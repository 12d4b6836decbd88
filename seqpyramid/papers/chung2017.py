"""Printed results of the HM-LSTM (Chung, Ahn, Bengio; ICLR 2017, arXiv version 7), Tables 1 to 3.

No parameter counts are printed. Names beginning with ``ln_`` use layer normalisation.
"""

KEY = "chung2017"
TITLE = "Hierarchical Multiscale Recurrent Neural Networks"
AUTHORS = "Junyoung Chung, Sungjin Ahn, Yoshua Bengio"
VENUE = "ICLR 2017"
ARXIV: str | None = "1609.01704"

_TABLE_1_PTB = """
row                 | label                                             | parameters | PTB
-                   | Norm-stabilized RNN                               | -          | 1.48
-                   | CW-RNN                                            | -          | 1.46
-                   | HF-MRNN                                           | -          | 1.41
-                   | MI-RNN                                            | -          | 1.39
-                   | ME n-gram                                         | -          | 1.37
bn_lstm             | BatchNorm LSTM                                    | -          | 1.32
zoneout_lstm        | Zoneout RNN                                       | -          | 1.27
-                   | HyperNetworks                                     | -          | 1.27
-                   | LayerNorm HyperNetworks                           | -          | 1.23
-                   | LayerNorm CW-RNN                                  | -          | 1.40
ln_lstm             | LayerNorm LSTM                                    | -          | 1.29
ln_hm_lstm_sampling | LayerNorm HM-LSTM, sampling                       | -          | 1.27
ln_hm_lstm_soft     | LayerNorm HM-LSTM, soft                           | -          | 1.27
ln_hm_lstm_step     | LayerNorm HM-LSTM, step function                  | -          | 1.25
ln_hm_lstm          | LayerNorm HM-LSTM, step function, slope annealing | -          | 1.24
"""

_TABLE_1_ENWIK8 = """
row        | label                   | parameters | enwik8
-          | Stacked LSTM            | -          | 1.67
-          | MRNN                    | -          | 1.60
-          | GF-LSTM                 | -          | 1.58
-          | Grid-LSTM               | -          | 1.47
-          | MI-LSTM                 | -          | 1.44
-          | Recurrent Memory Array  | -          | 1.40
-          | SF-LSTM                 | -          | 1.37
-          | HyperNetworks           | -          | 1.35
-          | LayerNorm HyperNetworks | -          | 1.34
-          | Recurrent Highway Nets  | -          | 1.32
ln_lstm    | LayerNorm LSTM          | -          | 1.39
hm_lstm    | HM-LSTM                 | -          | 1.34
ln_hm_lstm | LayerNorm HM-LSTM       | -          | 1.32
-          | PAQ8hp12                | -          | 1.32
-          | decomp8                 | -          | 1.28
"""

_TABLE_2 = """
row        | label             | parameters | text8
-          | td-LSTM           | -          | 1.63
-          | HF-MRNN           | -          | 1.54
-          | MI-RNN            | -          | 1.52
-          | Skipping-RNN      | -          | 1.48
-          | MI-LSTM           | -          | 1.44
bn_lstm    | BatchNorm LSTM    | -          | 1.36
hm_lstm    | HM-LSTM           | -          | 1.32
ln_hm_lstm | LayerNorm HM-LSTM | -          | 1.29
"""

_TABLE_3 = """
row               | label                    | parameters | IAM-OnDB
lstm              | Standard LSTM            | -          | 1081
hm_lstm           | HM-LSTM                  | -          | 1137
hm_lstm_annealing | HM-LSTM, slope annealing | -          | 1167
"""

TABLES: tuple[tuple[str, str, str], ...] = (
    ("Table 1", "bpc", _TABLE_1_PTB),
    ("Table 1", "bpc", _TABLE_1_ENWIK8),
    ("Table 2", "bpc", _TABLE_2),
    ("Table 3", "log_likelihood", _TABLE_3),
)

_QUOTED = "quoted from other work"
_OWN = "run by the authors, with layer normalisation and their output module"

NOTES: dict[tuple[str, str, str], str] = {
    ("Table 1", "PTB", "Norm-stabilized RNN"): _QUOTED,
    ("Table 1", "PTB", "CW-RNN"): _QUOTED,
    ("Table 1", "PTB", "HF-MRNN"): _QUOTED,
    ("Table 1", "PTB", "MI-RNN"): _QUOTED,
    ("Table 1", "PTB", "ME n-gram"): _QUOTED,
    ("Table 1", "PTB", "BatchNorm LSTM"): _QUOTED,
    ("Table 1", "PTB", "Zoneout RNN"): _QUOTED,
    ("Table 1", "*", "HyperNetworks"): _QUOTED,
    ("Table 1", "*", "LayerNorm HyperNetworks"): _QUOTED,
    ("Table 1", "PTB", "LayerNorm CW-RNN"): _OWN,
    ("Table 1", "*", "LayerNorm LSTM"): _OWN,
    ("Table 1", "PTB", "LayerNorm HM-LSTM, soft"): "boundaries are not made discrete",
    ("Table 1", "enwik8", "Stacked LSTM"): _QUOTED,
    ("Table 1", "enwik8", "MRNN"): _QUOTED,
    ("Table 1", "enwik8", "GF-LSTM"): _QUOTED,
    ("Table 1", "enwik8", "Grid-LSTM"): _QUOTED,
    ("Table 1", "enwik8", "MI-LSTM"): _QUOTED,
    ("Table 1", "enwik8", "Recurrent Memory Array"): _QUOTED,
    (
        "Table 1",
        "enwik8",
        "SF-LSTM",
    ): f"{_QUOTED}; reads the test errors while it predicts, so not comparable",
    ("Table 1", "enwik8", "Recurrent Highway Nets"): _QUOTED,
    ("Table 1", "enwik8", "PAQ8hp12"): f"{_QUOTED}; a compressor, not a neural network",
    ("Table 1", "enwik8", "decomp8"): f"{_QUOTED}; a compressor, not a neural network",
    ("Table 2", "text8", "td-LSTM"): _QUOTED,
    ("Table 2", "text8", "HF-MRNN"): _QUOTED,
    ("Table 2", "text8", "MI-RNN"): _QUOTED,
    ("Table 2", "text8", "Skipping-RNN"): _QUOTED,
    ("Table 2", "text8", "MI-LSTM"): _QUOTED,
    ("Table 2", "text8", "BatchNorm LSTM"): _QUOTED,
}
