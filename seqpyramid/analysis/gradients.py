r"""How far back a model can learn: the gradient that reaches each time step.

For a random unit direction u the curve is

.. math:: g_t = \frac{1}{B} \sum_b \left\| \frac{\partial\, (u \cdot s_b)}{\partial x_{b,t}} \right\|_2

with s the summary that the classifier reads and x normal inputs. A plain recurrent network's curve falls by a
steady factor for each step back; that of a network with shortcuts through time falls more slowly. Where it is
below what the training's arithmetic can hold (about 1e-38 in float32), nothing is learnt.

Shapes: B batch, T time steps, F input features, H summary features.
"""

import copy
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from seqpyramid.analysis.speed import synthetic_batch
from seqpyramid.errors import RecipeError
from seqpyramid.models.base import SequenceModel
from seqpyramid.rundir import write_atomically


def gradient_flow(model: SequenceModel, *, time: int, batch: int, seed: int = 0) -> Tensor:
    """Return g (T,) on the CPU for ``batch`` random sequences of ``time`` steps.

    A copy of the model runs in float64, so that a gradient too small for float32 still shows how small it is,
    and in evaluation mode, so that dropout does not blur it. A step that the summary does not read has 0.

    Raises:
        RecipeError: ``time`` or ``batch`` is below 1.
    """
    device = next(model.parameters()).device
    x = synthetic_batch(model.spec, batch_size=batch, time=time, device=device, seed=seed).x
    x = x.double().requires_grad_()
    model = copy.deepcopy(model).double().eval()
    # cuDNN has no backward pass for recurrent layers in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False):
        summary: Tensor = model(x).summary
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(summary.shape[1], generator=generator, dtype=torch.float64)
        direction = (direction / direction.norm()).to(device)
        # Sequences do not read each other, so the gradient of the sum holds each one's own.
        (gradient,) = torch.autograd.grad((summary @ direction).sum(), x)
    flow: Tensor = gradient.norm(dim=2).mean(dim=0).cpu()
    return flow


def plot_gradient_flow(curves: Mapping[str, Tensor], path: Path) -> None:
    """Draw log10 of each curve (T,) against the steps before the end, into the PNG file ``path``.

    Where a curve is 0 it has no logarithm and its line has a gap.

    Raises:
        RecipeError: there is no curve.
        ResourceError: the file cannot be written.
    """
    if not curves:
        raise RecipeError("there is no gradient curve to draw; name at least one model")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        back = torch.arange(len(curve) - 1, -1, -1)
        shown = torch.where(curve > 0, curve, torch.nan).log10()
        axes.plot(back.numpy(), shown.numpy(), label=name, linewidth=1)
    axes.invert_xaxis()
    axes.set_xlabel("steps before the end")
    axes.set_ylabel("log10 of the mean gradient norm")
    axes.set_title("Gradient of the summary with respect to each input")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
