"""The Dilated RNN by its authors, in TensorFlow: github.com/code-terminator/DilatedRNN, ``models/``.

What is used of it: ``drnn_classification(x, hidden_structs, dilations, n_steps, n_classes, input_dims, cell_type)`` of
``classification_models``, which builds the graph from a placeholder (B, T, F) to logits (B, K), head included. Cells
are "RNN", "LSTM" and "GRU", one adapter each, because the graph of nine unrolled layers takes minutes to build and
gigabytes to run.

The code is of TensorFlow 1. It gets the ``compat.v1`` interface of an installed TensorFlow 2 (up to 2.15, which has
the old cells), with the four names of ``contrib.rnn`` that moved. Should it not be Python 3 either, convert it:

    git clone https://github.com/code-terminator/DilatedRNN
    2to3 --write --nobackups DilatedRNN/models
    python -m benchmarks.speed --public DilatedRNN-LSTM=DilatedRNN

The adapter has not been run against the repository itself, only, with TensorFlow 2.15, against a stand-in with this
signature.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.candidates import Candidate, Setting
from benchmarks.public.loading import imported, member
from seqpyramid.errors import RecipeError

HIDDEN_SIZE = 50
LAYERS = 9
"""Dilations 1 to 256, the larger models of the paper's Table 1."""

CELLS = ("RNN", "LSTM", "GRU")


def name(cell: str) -> str:
    """The adapter's name."""
    return f"DilatedRNN-{cell}"


def candidates(cell: str, folder: Path | None, setting: Setting) -> list[Candidate]:
    """Nine layers of 50 units with one of the three cells, on as many threads as torch has.

    Raises:
        RecipeError: the repository or TensorFlow is not there, or the setting is not one that it can serve.
    """
    adapter = name(cell)
    if folder is None:
        raise RecipeError(f"--public {adapter}: is no package; name its checkout, --public {adapter}=FOLDER")
    if setting.device.type != "cpu":
        raise RecipeError(f"--public {adapter}: runs on the CPU only here; measure with --device cpu")
    if setting.time <= 2 ** (LAYERS - 1):
        raise RecipeError(
            f"--public {adapter}: its largest dilation, {2 ** (LAYERS - 1)}, has to be below T; give a larger --time"
        )
    tf = imported("tensorflow", None, adapter=adapter).compat.v1
    with standing_in(tf):
        module = imported("classification_models", folder / "models", adapter=adapter)
    build = member(module, "drnn_classification", adapter=adapter)
    return [TensorFlowRun(tf, build, cell, setting).candidate(f"{adapter} {LAYERS} x {HIDDEN_SIZE}")]


@contextmanager
def standing_in(tf: Any) -> Iterator[None]:
    """Let ``import tensorflow`` give the old interface, with the names that ``contrib.rnn`` had."""
    old = ModuleType("tensorflow")
    old.__dict__.update({key: getattr(tf, key) for key in dir(tf) if not key.startswith("__")})
    cells = tf.nn.rnn_cell
    moved = {kind: getattr(cells, kind) for kind in ("BasicRNNCell", "BasicLSTMCell", "GRUCell")}
    old.__dict__["contrib"] = SimpleNamespace(rnn=SimpleNamespace(static_rnn=tf.nn.static_rnn, **moved))
    new = sys.modules["tensorflow"]
    sys.modules["tensorflow"] = old
    try:
        yield
    finally:
        sys.modules["tensorflow"] = new


class TensorFlowRun:
    """Their graph with cross entropy and Adam, in a session of its own.

    Args:
        tf: TensorFlow's old interface.
        build: their function.
        cell: their name of the recurrence.
        setting: the batch's shape.
    """

    def __init__(self, tf: Any, build: Any, cell: str, setting: Setting) -> None:
        spec, batch = setting.spec, setting.batch("summary")
        graph = tf.Graph()
        with graph.as_default():
            x = tf.placeholder(tf.float32, [setting.batch_size, setting.time, spec.input_size])
            y = tf.placeholder(tf.int64, [setting.batch_size])
            self.logits = build(
                x,
                [HIDDEN_SIZE] * LAYERS,
                [2**layer for layer in range(LAYERS)],
                setting.time,
                spec.outputs,
                spec.input_size,
                cell,
            )
            loss = tf.losses.sparse_softmax_cross_entropy(labels=y, logits=self.logits)
            self.update = tf.train.AdamOptimizer(1e-3).minimize(loss)
            shapes = [variable.shape.as_list() for variable in tf.trainable_variables()]
            start = tf.global_variables_initializer()
        self.parameters = sum(torch.Size(shape).numel() for shape in shapes)
        self.feed = {x: batch.x.numpy(), y: batch.y.numpy()}
        threads = torch.get_num_threads()
        self.session = tf.Session(
            graph=graph,
            config=tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads),
        )
        self.session.run(start)

    def candidate(self, name: str) -> Candidate:
        """Make it ready to run; nobody has counted its FLOPs."""
        return Candidate(
            name=name,
            parameters=self.parameters,
            training=lambda: self.session.run(self.update, self.feed),
            inference=self.infer,
            forward_flops=None,
        )

    def infer(self) -> None:
        """Run the batch once, without gradients."""
        self.session.run(self.logits, {key: value for key, value in self.feed.items() if value.ndim > 1})
