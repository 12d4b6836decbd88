"""The MODELS table: name -> config class."""

from seqpyramid.models.base import ModelConfig
from seqpyramid.models.bidirectional import BidirectionalConfig
from seqpyramid.models.bn_lstm import BatchNormLSTMConfig
from seqpyramid.models.clockwork import ClockworkRNNConfig
from seqpyramid.models.cornn import CoRNNConfig
from seqpyramid.models.dilated import DilatedRNNConfig
from seqpyramid.models.dilated_cnn import DilatedCNNConfig
from seqpyramid.models.embedded import EmbeddedConfig
from seqpyramid.models.gated_feedback import GatedFeedbackRNNConfig
from seqpyramid.models.hm_lstm import HMLSTMConfig
from seqpyramid.models.hyper_lstm import HyperLSTMConfig
from seqpyramid.models.indrnn import IndRNNConfig
from seqpyramid.models.irnn import IRNNConfig
from seqpyramid.models.lem import LEMConfig
from seqpyramid.models.ln_lstm import LayerNormLSTMConfig
from seqpyramid.models.lru import LRUConfig
from seqpyramid.models.min_rnn import MinGRUConfig, MinLSTMConfig
from seqpyramid.models.peephole import PeepholeLSTMConfig
from seqpyramid.models.recurrent_dropout import RecurrentDropoutLSTMConfig
from seqpyramid.models.rnn import GRUConfig, LSTMConfig, RNNConfig
from seqpyramid.models.s4d import S4DConfig
from seqpyramid.models.skip import SkipRNNConfig
from seqpyramid.models.tcn import TCNConfig
from seqpyramid.models.tdnn import TDNNConfig
from seqpyramid.models.tp_rnn import TPRNNConfig
from seqpyramid.models.transformer import TransformerConfig
from seqpyramid.models.tree import TreeConfig
from seqpyramid.models.urnn import UnitaryRNNConfig
from seqpyramid.models.zoneout import ZoneoutLSTMConfig
from seqpyramid.registry import Registry

MODELS: Registry[ModelConfig] = Registry(
    "model",
    [
        RNNConfig,
        LSTMConfig,
        GRUConfig,
        TPRNNConfig,
        DilatedRNNConfig,
        HMLSTMConfig,
        DilatedCNNConfig,
        SkipRNNConfig,
        PeepholeLSTMConfig,
        BidirectionalConfig,
        EmbeddedConfig,
        TDNNConfig,
        TreeConfig,
        IRNNConfig,
        UnitaryRNNConfig,
        IndRNNConfig,
        ZoneoutLSTMConfig,
        BatchNormLSTMConfig,
        RecurrentDropoutLSTMConfig,
        LayerNormLSTMConfig,
        ClockworkRNNConfig,
        HyperLSTMConfig,
        GatedFeedbackRNNConfig,
        S4DConfig,
        LRUConfig,
        MinGRUConfig,
        MinLSTMConfig,
        CoRNNConfig,
        LEMConfig,
        TCNConfig,
        TransformerConfig,
    ],
)
