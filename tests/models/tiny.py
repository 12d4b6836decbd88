"""One or more tiny configs for every entry of MODELS: what the contract suite runs."""

from seqpyramid.models import MODELS
from seqpyramid.models.base import ModelConfig

TINY: dict[str, list[dict[str, object]]] = {
    "rnn": [
        {"hidden_size": 4},
        {"hidden_size": 3, "layers": 2, "bias": "double", "nonlinearity": "relu"},
    ],
    "lstm": [
        {"hidden_size": 4},
        {"hidden_size": 3, "layers": 3, "output_aggregation": "sum", "output_maps": True, "forget_bias": 1.0},
        {"hidden_size": 3, "layers": 2, "output_aggregation": "ours", "init": "tensorflow"},
    ],
    "gru": [{"hidden_size": 4}, {"hidden_size": 3, "layers": 2, "bias": "double"}],
    "tp_rnn": [
        {"hidden_size": 3, "pyramid_length": [4], "granularity": [2]},
        {"hidden_size": 3, "pyramid_length": [5, 3], "granularity": [2, 2], "attention": "aligned"},
        {
            "hidden_size": 4,
            "pyramid_length": [6, 4],
            "granularity": [2, 3],
            "cell": "gru",
            "output_maps": False,
            "output_squash": True,
            "shortcut_order": "paper",
        },
        {
            "hidden_size": 3,
            "pyramid_length": [4, 2],
            "granularity": [2, 2],
            "cell": "elman",
            "aggregation": "senet",
        },
        {
            "hidden_size": 3,
            "pyramid_length": [4, 2],
            "granularity": [2, 2],
            "aggregation": "max",
            "top_down": False,
        },
        {
            "hidden_size": 3,
            "pyramid_length": [4, 4],
            "granularity": [2, 2],
            "aggregation": "mean",
            "aggregate_cell": False,
            "iterative_aggregation": False,
            "output_aggregation": False,
            "input_level": 2,
        },
    ],
    "hm_lstm": [
        {"hidden_sizes": [3, 4, 3], "embedding_size": 5, "boundaries": "soft", "layer_norm": True},
        {
            "hidden_sizes": [4, 3],
            "embedding_size": 4,
            "boundaries": "soft",
            "boundary_gradient": "logistic",
            "slope": 2.0,
            "top_boundary": True,
            "summary": "last",
        },
        {
            "hidden_sizes": [4, 3, 5],
            "embedding_size": 4,
            "boundary_gradient": "logistic",
            "selection_gradient": "where",
            "cell_bias": False,
            "top_boundary": True,
            "init": "tensorflow",
        },
        {"hidden_sizes": [3, 3], "embedding_size": 4, "boundaries": "sampling", "forget_bias": 1.0},
    ],
    "dilated_rnn": [
        {"hidden_size": 4, "layers": 3},
        {"cell": "lstm", "hidden_size": [3, 4], "layers": 2, "start_exponent": 1, "forget_bias": 0.5},
        {"cell": "gru", "hidden_size": 3, "dilations": [1, 3], "bias": "double", "init": "standard_normal"},
        {"cell": "gru", "reset": "after", "hidden_size": 3, "dilations": [2, 3], "init": "torch"},
    ],
    "dilated_cnn": [
        {"filters": 5, "layers": 3},
        {"filters": 3, "layers": 2, "activation": "tanh", "init": "torch"},
    ],
    "skip_rnn": [
        {"hidden_size": 4, "layers": 1, "skip": 3},
        {"hidden_size": 3, "layers": 2, "skip": 2, "init": "torch", "head_init": "torch"},
    ],
    "peephole_lstm": [
        {"hidden_size": 4},
        {
            "hidden_size": 3,
            "layers": 2,
            "candidate": "sigmoid",
            "bias": "double",
            "forget_bias": 1.0,
            "init": "tensorflow",
            "peephole_init": "zeros",
        },
    ],
    "bidirectional": [
        {"inner": {"name": "lstm", "hidden_size": 3, "layers": 2}},
        {"inner": {"name": "peephole_lstm", "hidden_size": 3}},
        {"inner": {"name": "tp_rnn", "hidden_size": 3, "pyramid_length": [4], "granularity": [2]}},
    ],
    "embedded": [
        {"inner": {"name": "lstm", "hidden_size": 3}, "size": 4},
        {
            "inner": {"name": "hm_lstm", "hidden_sizes": [3, 3], "embedding_size": 4},
            "size": 5,
            "dropout": 0.1,
        },
        {"inner": {"name": "dilated_rnn", "hidden_size": 3, "layers": 2}, "dropout": 0.2},
        {"inner": {"name": "tp_rnn", "hidden_size": 3, "pyramid_length": [4], "granularity": [2]}, "size": 3},
    ],
    "tdnn": [
        {"channels": [4, 3], "kernel_sizes": [3, 2], "dilations": [1, 3]},
        {
            "channels": [3, 4],
            "kernel_sizes": [2, 3],
            "readout": "mean",
            "activation": "tanh",
            "init": "tensorflow",
        },
        {"channels": [3, 4], "kernel_sizes": [3, 2], "strides": [2, 3], "activation": "relu"},
    ],
    "tree": [
        {"hidden_size": 4},
        {"hidden_size": 3, "composition": "tree_lstm", "forget_bias": 1.0, "init": "tensorflow"},
    ],
    "irnn": [
        {"hidden_size": 4, "input_deviation": 0.5},
        {"hidden_size": 3, "input_deviation": 0.5, "identity_scale": 0.5},
    ],
    "urnn": [{"hidden_size": 4}, {"hidden_size": 3, "init": "released", "epsilon": 1e-3}],
    "indrnn": [
        {"hidden_size": 4, "layers": 2, "last_start": "uniform"},
        {"hidden_size": 5, "layers": 2, "bound": "none", "batch_norm": "after", "dropout": 0.2},
        {
            "hidden_size": 3,
            "layers": 3,
            "nonlinearity": "tanh",
            "bound": "one",
            "last_start": "uniform",
            "batch_norm": "before",
        },
    ],
    "zoneout_lstm": [
        {"hidden_size": 4},
        {"hidden_size": 3, "masks": "shared", "zoneout_cell": 0.4, "zoneout_hidden": 0.4},
        {"hidden_size": 3, "zoneout_hidden": 0.05, "zoneout_cell": 0.5, "initial_state": "learned"},
    ],
    "bn_lstm": [
        {"hidden_size": 4, "statistics_steps": 6, "initial_gamma": 0.7},
        {"hidden_size": 3, "initial_state": "learned", "init": "orthogonal", "statistics_rate": 0.5},
    ],
    "recurrent_dropout_lstm": [
        {"hidden_size": 4},
        {"hidden_size": 3, "mask": "per_sequence", "scaling": "training", "rate": 0.5},
    ],
    "ln_lstm": [{"hidden_size": 4}, {"hidden_size": 3, "initial_state": "learned", "epsilon": 1e-3}],
    "clockwork_rnn": [
        {"hidden_size": 6, "periods": [1, 2, 4]},
        {"hidden_size": 4, "periods": [2, 3], "init": "torch", "head_init": "released_tp_rnn"},
        {"hidden_size": 3, "periods": [1, 3, 4]},
    ],
    "hyper_lstm": [
        {"hidden_size": 4, "hyper_size": 3, "embedding_size": 2, "init": "torch"},
        {
            "hidden_size": 3,
            "layers": 2,
            "hyper_size": 4,
            "embedding_size": 2,
            "layer_norm": False,
            "recurrent_dropout": 0.2,
            "init": "torch",
        },
    ],
    "gated_feedback_rnn": [
        {"hidden_size": 3, "layers": 2},
        {"hidden_size": 4, "layers": 3, "cell": "elman", "gate_bias": True, "init": "tensorflow"},
        {"hidden_size": 3, "layers": 2, "feedback": "ungated", "forget_bias": 1.0},
    ],
    "s4d": [
        {"hidden_size": 4, "layers": 2, "state_size": 4},
        {
            "hidden_size": 3,
            "layers": 1,
            "state_size": 2,
            "norm": "pre",
            "final_norm": True,
            "summary": "last",
            "dt_min": 0.05,
            "dt_max": 0.5,
        },
    ],
    "lru": [
        {"hidden_size": 4, "state_size": 3, "layers": 2},
        {
            "hidden_size": 3,
            "state_size": 4,
            "layers": 1,
            "norm": "pre",
            "final_norm": True,
            "summary": "last",
            "r_min": 0.5,
            "r_max": 0.9,
            "max_phase": 1.0,
        },
    ],
    "min_gru": [
        {"hidden_size": 4},
        {"hidden_size": 3, "layers": 2, "candidate": "positive"},
        {"hidden_size": 3, "layers": 2, "residual": True, "expansion": 2},
    ],
    "min_lstm": [
        {"hidden_size": 4, "forget_bias": 1.0},
        {"hidden_size": 3, "layers": 2, "candidate": "positive", "residual": True},
    ],
    "cornn": [
        {"hidden_size": 4},
        {"hidden_size": 3, "dt": 0.3, "gamma": 1.5, "epsilon": 2.0, "damping": "implicit"},
    ],
    "lem": [{"hidden_size": 4}, {"hidden_size": 3, "dt": 0.8, "bias": "single"}],
    "tcn": [
        {"channels": 4, "layers": 2, "kernel_size": 3},
        {"channels": 2, "layers": 3, "kernel_size": 2, "init": "released"},
    ],
    "transformer": [
        {"hidden_size": 4, "heads": 2, "layers": 2, "feedforward_size": 5},
        {
            "hidden_size": 4,
            "heads": 1,
            "layers": 1,
            "feedforward_size": 6,
            "attention": "causal",
            "positions": "learned",
            "max_length": 14,
            "summary": "last",
            "activation": "gelu",
        },
    ],
}


def tiny_configs() -> list[ModelConfig]:
    """Every tiny config, validated as a recipe would."""
    import json

    return [
        MODELS.lookup(name).model_validate_json(json.dumps({"name": name, **fields}))
        for name, several in TINY.items()
        for fields in several
    ]


def tiny_config(name: str) -> ModelConfig:
    """The first tiny config of one entry."""
    return next(config for config in tiny_configs() if config.name == name)


def label(config: ModelConfig) -> str:
    """A name for a test's parameter."""
    fields = config.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    return f"{config.name}-{TINY[config.name].index(fields)}"
