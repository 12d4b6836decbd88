"""The README's own model and own task run as printed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqpyramid.contracts import SPLITS, TaskSpec
from seqpyramid.tasks.base import DataPlace

README = Path(__file__).parent.parent / "README.md"

IMPORTS = """
from typing import ClassVar, Literal
import numpy as np
import torch
from seqpyramid.contracts import SPLITS, Selection, TaskSpec
from seqpyramid.data.loading import ArrayDataset
from seqpyramid.models.base import Encoding, ModelConfig, SequenceModel, mask_steps
from seqpyramid.tasks.base import Prepared, Task
from seqpyramid.tasks.metrics import ClassificationMetrics, cross_entropy
"""


def block(word: str) -> dict[str, Any]:
    """Run the one Python block that has a word in it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [text for text in blocks if word in text]
    names: dict[str, Any] = {}
    exec(IMPORTS + code, names)
    return names


def test_own_model() -> None:
    model = block("MeanPoolConfig")["MeanPoolConfig"]().build(TaskSpec(input_size=2, outputs=3))
    x = torch.randn(2, 5, 2)
    output = model(x, torch.tensor([5, 2]))
    torch.testing.assert_close(output.summary[1], x[1, :2].mean(0))
    assert output.outputs.shape == (2, 3)


def test_own_task(tmp_path: Path) -> None:
    arrays = {f"x_{s}": np.ones((4, 6, 3), dtype=np.float32) for s in SPLITS}
    np.savez(tmp_path / "mine.npz", **arrays, **{f"y_{s}": np.array([0, 1, 1, 0]) for s in SPLITS})
    task = block("MyTask")["MyTask"]()
    assert task.prepare(DataPlace(tmp_path, source=tmp_path)).splits == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }
    data = task.dataset("test")
    batch = data.batch(torch.arange(4))
    metrics = task.metrics()
    metrics.update(torch.zeros(4, 2), batch)
    assert metrics.compute()["accuracy"] == 0.5
    assert task.loss(torch.zeros(4, 2), batch)[1] == 4


def model_table() -> list[str]:
    """The README's table of models, as it must read."""
    from seqpyramid.models import MODELS
    from seqpyramid.recipe import load

    pmnist = load("pmnist")
    spec = pmnist.task.build().spec
    rows: dict[str, list[str]] = {}
    for row, config in pmnist.models.items():
        rows.setdefault(config.name, []).append(f"`{row}` {config.build(spec).parameter_count:,}")
    lines = []
    for name, entry in MODELS.items():
        test = f"test_{entry.__module__.rsplit('.', 1)[1]}.py"
        assert (README.parent / "tests" / "models" / test).exists(), test
        options = ", ".join(
            f"`{field}`" for field in entry.model_fields if field not in ("name", "hidden_size")
        )
        lines.append(
            f"| `{name}` | {entry.summary_line} | {'; '.join(rows.get(name, ['–']))} | {options} | `{test}` |"
        )
    return lines


def test_the_model_table_is_true() -> None:
    text = README.read_text(encoding="utf-8").splitlines()
    wanted = model_table()
    missing = [line for line in wanted if line not in text]
    assert not missing, "put these lines into README.md:\n" + "\n".join(wanted)


def test_every_recipe_and_exit_code_is_in_the_readme() -> None:
    from seqpyramid.errors import EXIT_CODES
    from seqpyramid.recipe import recipe_files

    text = README.read_text(encoding="utf-8")
    assert not [name for name in recipe_files() if f"`{name}`" not in text]
    assert not [code for code in EXIT_CODES if f"| {code} |" not in text and f"{code} " not in text]
