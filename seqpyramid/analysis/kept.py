"""What a forward pass keeps for the backward pass: the part of a training step's memory that grows with B and T.

Counted are the tensors that autograd saves, each storage once, without the weights and the batch itself. Unlike the
growth of :mod:`.memory` it is exact and says nothing of workspace that comes and goes within a pass.

Shapes: B batch, T time steps.
"""

import torch
from torch import Tensor

from seqpyramid.analysis.memory import Build


def kept_bytes(build: Build, device: torch.device) -> int:
    """Return the bytes that one forward pass in training mode keeps."""
    model, x, lengths, _ = build()
    model, x = model.to(device).train(), x.to(device)
    others = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an operation's own result, kept as it is, would hold itself alive

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = model(
            x, lengths
        ).outputs  # alive until all is counted, or a storage's place could be used twice
    del outputs
    return sum(kept.values())
