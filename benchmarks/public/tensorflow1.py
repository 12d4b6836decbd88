"""What the adapters to code for TensorFlow 1 share: its old interface under an installed TensorFlow 2, and a session.

The code gets ``tensorflow.compat.v1`` of a TensorFlow up to 2.15, the last with the old cells, and under their old
names what that interface moved or dropped: four names of ``contrib.rnn``, and the tutorials' reader of MNIST, which
is only imported.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.candidates import Candidate, Setting
from benchmarks.public.loading import imported
from seqpyramid.errors import RecipeError

READER = "tensorflow.examples.tutorials.mnist.input_data"


def checkout(folder: Path | None, setting: Setting, *, adapter: str) -> Path:
    """The folder of the code, where the setting is one that a session serves.

    Raises:
        RecipeError: no folder was named, or the device is not the CPU.
    """
    if folder is None:
        raise RecipeError(f"--public {adapter}: is no package; name its checkout, --public {adapter}=FOLDER")
    if setting.device.type != "cpu":
        raise RecipeError(f"--public {adapter}: runs on the CPU only here; measure with --device cpu")
    return folder


def old_interface(*, adapter: str) -> Any:
    """TensorFlow's old interface.

    Raises:
        RecipeError: TensorFlow is not installed, or too new for it.
    """
    new = imported("tensorflow", None, adapter=adapter)
    if not hasattr(new.compat.v1.nn, "rnn_cell"):
        raise RecipeError(
            f"--public {adapter}: TensorFlow {new.__version__} has lost the old cells; install one up to 2.15"
        )
    return new.compat.v1


@contextmanager
def standing_in(tf: Any) -> Iterator[None]:
    """Let ``import tensorflow`` give the old interface, and keep standard output free of what the code prints."""
    old = ModuleType("tensorflow")
    old.__dict__.update({key: getattr(tf, key) for key in dir(tf) if not key.startswith("__")})
    cells = tf.nn.rnn_cell
    moved = {kind: getattr(cells, kind) for kind in ("BasicRNNCell", "BasicLSTMCell", "GRUCell")}
    old.__dict__["contrib"] = SimpleNamespace(rnn=SimpleNamespace(static_rnn=tf.nn.static_rnn, **moved))
    reader = ModuleType(READER)
    old.__dict__["examples"] = SimpleNamespace(
        tutorials=SimpleNamespace(mnist=SimpleNamespace(input_data=reader))
    )
    new = sys.modules["tensorflow"]
    sys.modules |= {"tensorflow": old, READER: reader}
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.modules["tensorflow"] = new
        del sys.modules[READER]


class Session:
    """A graph's session, on the CPU and on as many threads as torch has, its variables at their start.

    Args:
        tf: TensorFlow's old interface.
        graph: it is the one in force.
    """

    def __init__(self, tf: Any, graph: Any) -> None:
        shapes = [variable.shape.as_list() for variable in tf.trainable_variables()]
        self.parameters = sum(torch.Size(shape).numel() for shape in shapes)
        threads = torch.get_num_threads()
        self.session = tf.Session(
            graph=graph,
            config=tf.ConfigProto(
                intra_op_parallelism_threads=threads,
                inter_op_parallelism_threads=threads,
                device_count={"GPU": 0},
            ),
        )
        self.session.run(tf.global_variables_initializer())

    def candidate(
        self,
        name: str,
        *,
        update: Any,
        outputs: Any,
        training: Mapping[Any, Any],
        inference: Mapping[Any, Any],
    ) -> Candidate:
        """Make it ready to run; nobody has counted its FLOPs.

        Args:
            name: the table's row.
            update: what a training step runs.
            outputs: what an inference step runs.
            training: values of the placeholders of a training step.
            inference: those of an inference step.
        """

        def run(fetched: Any, values: Mapping[Any, Any]) -> None:
            self.session.run(fetched, values)

        return Candidate(
            name=name,
            parameters=self.parameters,
            training=lambda: run(update, training),
            inference=lambda: run(outputs, inference),
            forward_flops=None,
        )
