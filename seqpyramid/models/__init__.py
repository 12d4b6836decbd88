"""The MODELS table: name -> config class."""

from seqpyramid.models.base import ModelConfig
from seqpyramid.models.rnn import GRUConfig, LSTMConfig, RNNConfig
from seqpyramid.models.tp_rnn import TPRNNConfig
from seqpyramid.registry import Registry

MODELS: Registry[ModelConfig] = Registry("model", [RNNConfig, LSTMConfig, GRUConfig, TPRNNConfig])
