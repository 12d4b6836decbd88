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
}


def tiny_configs() -> list[ModelConfig]:
    """Every tiny config, validated as a recipe would."""
    import json

    return [
        MODELS.lookup(name).model_validate_json(json.dumps({"name": name, **fields}))
        for name, several in TINY.items()
        for fields in several
    ]


def label(config: ModelConfig) -> str:
    """A name for a test's parameter."""
    fields = config.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    return f"{config.name}-{TINY[config.name].index(fields)}"
