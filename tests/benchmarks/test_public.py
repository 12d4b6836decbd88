"""Adapters, run against stand-ins for the public code: its names and signatures, nothing of what it holds."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.candidates import Setting
from benchmarks.public import ADAPTERS, public_candidates
from benchmarks.public.loading import imported, member
from seqpyramid.contracts import TaskSpec
from seqpyramid.errors import RecipeError

SETTING = Setting(spec=TaskSpec(input_size=1, outputs=10), batch_size=2, time=5, device=torch.device("cpu"))

STAND_IN_DRNN = """
import torch

class DRNN(torch.nn.Module):
    def __init__(self, n_input, n_hidden, n_layers, dropout=0, cell_type="GRU", batch_first=False):
        super().__init__()
        assert not batch_first
        kind = getattr(torch.nn, cell_type)
        self.rnn = kind(n_input, n_hidden, n_layers)

    def forward(self, inputs, hidden=None):
        assert inputs.shape == (5, 2, 1), inputs.shape
        outputs, _ = self.rnn(inputs)
        return outputs, [outputs[-1:]]
"""

STAND_IN_HASTE = """
import torch

class LSTM(torch.nn.Module):
    def __init__(self, input_size, hidden_size, batch_first=False):
        super().__init__()
        assert batch_first
        self.rnn = torch.nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, input, state=None, lengths=None):
        assert input.shape == (2, 5, 1), input.shape
        return self.rnn(input)

class GRU(LSTM):
    pass
"""

STAND_IN_CHANG = """
import tensorflow as tf
from drnn import layer

def drnn_classification(x, hidden_structs, dilations, n_steps, n_classes, input_dims=1, cell_type="RNN"):
    assert (hidden_structs, n_steps, n_classes, input_dims) == ([50] * 9, 257, 10, 1)
    assert dilations == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    cells = {"RNN": "BasicRNNCell", "LSTM": "BasicLSTMCell", "GRU": "GRUCell"}
    steps = layer(getattr(tf.contrib.rnn, cells[cell_type])(hidden_structs[0]), tf.unstack(x[:, :4], axis=1))
    weights = tf.Variable(tf.random_normal(shape=[hidden_structs[-1], n_classes]))
    return tf.matmul(steps[-1], weights)
"""

STAND_IN_LAYER = """
import tensorflow as tf

def layer(cell, steps):
    return tf.contrib.rnn.static_rnn(cell, steps, dtype=tf.float32)[0]
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_checkout_takes_part_with_its_own_class(tmp_path: Path) -> None:
    (tmp_path / "drnn.py").write_text(STAND_IN_DRNN)
    path = list(sys.path)
    found = public_candidates([f"pytorch-dilated-rnn={tmp_path}"], SETTING)
    assert [one.name for one in found] == [
        f"pytorch-dilated-rnn, {cell} 9 x 50" for cell in ("RNN", "LSTM", "GRU")
    ]
    # one cell, two vectors of biases, eight layers that read 50 states, and the head
    assert [one.parameters for one in found] == [
        gates * 50 * (1 + 50 + 2) + gates * 8 * 50 * (50 + 50 + 2) + 510 for gates in (1, 4, 3)
    ]
    for one in found:
        assert one.model is not None
        before = [p.clone() for p in one.model.parameters()]
        one.inference()
        assert all(torch.equal(p, b) for p, b in zip(one.model.parameters(), before, strict=True))
        one.training()
        changed = [not torch.equal(p, b) for p, b in zip(one.model.parameters(), before, strict=True)]
        assert all(changed)  # loss and gradient reach their weights and our head
    assert sys.path == path
    assert "drnn" not in sys.modules


@pytest.mark.usefixtures("no_gpu")
def test_the_steps_of_the_public_form_are_counted_with_their_padding(tmp_path: Path) -> None:
    (tmp_path / "drnn.py").write_text(STAND_IN_DRNN)
    elman = public_candidates([f"pytorch-dilated-rnn={tmp_path}"], SETTING)[0]
    layers = [5 * 51] + [steps * 100 for steps in (6, 8, 8, 16, 32, 64, 128, 256)]
    assert elman.forward_flops == 2 * 50 * sum(layers) + 2 * 50 * 10


def test_an_installed_package_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "haste_pytorch.py").write_text(STAND_IN_HASTE)
    monkeypatch.syspath_prepend(tmp_path)
    found = public_candidates(["haste"], SETTING)
    sys.modules.pop("haste_pytorch")  # for the next test, which finds it missing
    assert [one.name for one in found] == ["haste, LSTM 100", "haste, GRU 100"]
    assert found[0].forward_flops == 5 * 2 * 400 * 101 + 2 * 100 * 10
    found[0].training()


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.filterwarnings("ignore")  # its own, about its old cells
def test_a_graph_of_tensorflow_takes_part(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "classification_models.py").write_text(STAND_IN_CHANG)
    (tmp_path / "models" / "drnn.py").write_text(STAND_IN_LAYER)
    setting = Setting(spec=SETTING.spec, batch_size=2, time=257, device=SETTING.device)
    texts = [f"DilatedRNN-{cell}={tmp_path}" for cell in ("RNN", "LSTM", "GRU")]
    found = public_candidates(texts, setting)
    assert [one.parameters for one in found] == [gates * 50 * (1 + 50 + 1) + 500 for gates in (1, 4, 3)]
    assert [one.name for one in found] == [f"DilatedRNN-{cell} 9 x 50" for cell in ("RNN", "LSTM", "GRU")]
    for one in found:
        one.training()
        one.inference()
    assert hasattr(sys.modules["tensorflow"], "keras")  # the new interface is back


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hasty", r"--public hasty: no adapter has this name; there are pytorch-dilated-rnn, haste"),
        ("haste", r"--public haste: the module 'haste_pytorch' is not installed; install it"),
        ("haste=.", r"--public haste=\.: is used as installed"),
        ("pytorch-dilated-rnn", r"--public pytorch-dilated-rnn: the module 'drnn' is not installed"),
        ("pytorch-dilated-rnn=", r"--public pytorch-dilated-rnn=: 'nothing' is no folder"),
        ("pytorch-dilated-rnn=/no/such", r"'/no/such' is no folder; clone the repository and name it"),
        ("pytorch-dilated-rnn=EMPTY", r"EMPTY: holds no module 'drnn'; name the folder of its checkout"),
        ("DilatedRNN-GRU", r"--public DilatedRNN-GRU: is no package; name its checkout"),
        ("DilatedRNN-GRU=EMPTY", r"its largest dilation, 256, has to be below T; give a larger --time"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_what_is_not_there_is_said_in_one_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    with pytest.raises(RecipeError, match=sentence) as raised:
        public_candidates([text], SETTING)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("import no_such_module\n", "drnn needs the module 'no_such_module', which is not installed"),
        ("x = 1\nprint 'old'\n", r"drnn\.py, line 2, is no Python 3; convert the checkout"),
        ("", r"drnn\.py holds no DRNN; is it the repository that the adapter's docstring names\?"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_what_cannot_be_imported_is_said_in_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "drnn.py").write_text(content)
    path = list(sys.path)
    with pytest.raises(RecipeError, match=sentence):
        public_candidates([f"pytorch-dilated-rnn={tmp_path}"], SETTING)
    assert sys.path == path
    assert "drnn" not in sys.modules


def test_padding_on_an_idle_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RecipeError, match="pads on the GPU wherever there is one"):
        ADAPTERS["pytorch-dilated-rnn"](tmp_path, SETTING)


def test_two_checkouts_may_use_the_same_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared_part.py").write_text(f"VALUE = {name!r}\n")
        (tmp_path / name / "shared_whole.py").write_text("from shared_part import VALUE\n")
    found = [imported("shared_whole", tmp_path / name, adapter="x") for name in ("one", "two", "one")]
    assert [member(module, "VALUE", adapter="x") for module in found] == ["one", "two", "one"]


def test_an_unrelated_module_of_the_same_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "calendar.py").write_text("HERE = True\n")
    import calendar

    found = imported("calendar", tmp_path, adapter="x")
    assert member(found, "HERE", adapter="x")
    assert sys.modules["calendar"] is calendar
