"""How the TP-RNN layer's kernels are launched: programs, blocks and what stays on registers.

The constants are what one tunes on a device.

Shapes: B batch, T time, H hidden units, M states of an aggregate at most.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from seqpyramid.kernels.gpu.tp_pyramid import sizes
from seqpyramid.kernels.gpu.tp_theta import EXPANSION
from seqpyramid.kernels.gpu.tp_theta_gradients import theta_gradients
from seqpyramid.kernels.tp_rnn import Pyramids

PRECISION = "ieee"
"""Of the matrix products that give the gradients of theta's weights. "ieee" is float32 proper; "tf32x3" is nearly so
and on tensor cores, but for compute capability 9.0 it compiles to more than 255 registers."""

MOST_ROWS = 4
"""Sequences of a program, at most; a power of two."""

WARPS = 8
"""Of the kernels over time."""

CHUNK_NUMBERS = 16
"""Numbers of a matrix's chunk that a thread takes."""

FORWARD_REGISTERS = 176
BACKWARD_REGISTERS = 144
"""Of a thread's 255, for rows of W that stay there and for partial sums."""

GRADIENT_PROGRAMS = 528
"""Programs that share out the gradients of theta's weights: four for each of 132 multiprocessors."""

GRADIENT_WARPS = 4

GRADIENT_COLUMNS = 64
"""Columns of a tile there; see :mod:`seqpyramid.kernels.gpu.tp_theta_gradients`."""

GRADIENT_ROWS = 64
"""Rows of W1 that a program there takes, at most."""

LEAST_DOT = 16
"""No side of a matrix product inside a kernel may be shorter."""


class Launch:
    """One layer's call.

    Args:
        x: (B, T, F).
        weight_hh: W.
        thetas: W1 and W2 of theta for h, for c (or None twice) and for the shortcut path (or None twice).
        time: the longest sequence's length.
        pyramids: the layer's shape.
    """

    def __init__(
        self,
        x: Tensor,
        weight_hh: Tensor,
        thetas: Sequence[Tensor | None],
        time: int,
        pyramids: Pyramids,
    ) -> None:
        self.x, self.time, self.pyramids = x, time, pyramids
        self.batch, self.hidden = len(x), weight_hh.shape[1]
        self.counts = sizes(pyramids)
        self.rows = rows_of_a_program(self.batch, x.device)
        self.programs = triton.cdiv(self.batch, self.rows)
        self.parts = 1 if thetas[2] is None else 2
        # weights for more states than a sub-pyramid has steps are read by their top-left corner only
        M = self.counts.states
        self.first = torch.stack([W1[: EXPANSION.value * M, :M] for W1 in thetas[0:4:2] if W1 is not None])
        self.second = torch.stack(
            [W2[:M, : EXPANSION.value * M].t() for W2 in thetas[1:4:2] if W2 is not None]
        )
        path_first, path_second = thetas[4:]
        self.path_first = None if path_first is None else path_first.contiguous()
        self.path_second = None if path_second is None else path_second.t().contiguous()

    def rooms(self) -> Tensor:
        """Scratch for what is scrambled."""
        states = max(self.counts.states, 2)
        return self.x.new_empty(self.programs, 2, states, 2, self.rows, self.hidden)

    def over_time(self, inner: int, outer: int, registers: int) -> dict[str, Any]:
        """What both kernels over time are compiled for; theirs is a product with a matrix (inner, outer)."""
        width, threads, words = triton.next_power_of_2(outer), 32 * WARPS, self.x.element_size() // 4
        chunk = min(max(CHUNK_NUMBERS * threads // width, 1), triton.next_power_of_2(inner))
        taken = words * max(
            chunk * width // threads, 1
        )  # registers for a chunk, and for a row's partial sums
        chunks = min(max(registers // taken - self.rows, 0), triton.cdiv(inner, chunk))
        return {
            **self.shape(),
            "STATES": self.counts.states,
            "EMITTED_LEVEL": self.pyramids.emitted_level,
            "EMITTED": self.counts.emitted,
            "TOP_DOWN": self.pyramids.top_down,
            "PARTS": self.parts,
            "BLOCK_B": self.rows,
            "BLOCK_H": triton.next_power_of_2(self.hidden),
            "CHUNK": chunk,
            "HELD": chunks * chunk,
            "num_warps": WARPS,
            "num_stages": 1,  # a load must not be moved before the barrier that it waits for
        }

    def shape(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        return {
            "LENGTH": self.pyramids.length,
            "GRANULARITY": self.pyramids.granularity,
            "LEVELS": self.counts.levels,
            "NODES": self.counts.nodes,
            "SCRAMBLED": self.pyramids.scrambled,
            "TOP_FIRST": self.pyramids.top_first,
            "HIDDEN": self.hidden,
        }

    def theta_gradients(
        self, states: Tensor, d_nodes: Tensor, ends: Tensor, nodes: int, *, path: bool
    ) -> tuple[Tensor, Tensor]:
        """The gradients of W1 (parts, 3 M, M) and W2 (parts, M, 3 M) over some aggregates, all those of one kind.

        Args:
            states: h and c, as the forward kernel leaves them.
            d_nodes: a of each aggregate, as the backward kernel does.
            ends: (B,), the lengths.
            nodes: how many aggregates.
            path: whether they are those of the shortcut path.
        """
        if path:
            assert self.path_first is not None
            assert self.path_second is not None
            first, second = self.path_first[None], self.path_second[None]
        else:
            first, second = self.first, self.second
        parts, rows, count = first.shape
        block_m = max(triton.next_power_of_2(count), LEAST_DOT)
        block_d = min(max(triton.next_power_of_2(rows), LEAST_DOT), GRADIENT_ROWS)
        blocks = triton.cdiv(rows, block_d)
        tiles = nodes * triton.cdiv(self.batch * self.hidden, GRADIENT_COLUMNS)
        programs = min(GRADIENT_PROGRAMS, tiles)
        sums = self.x.new_empty(programs, parts, 2, blocks * block_d, block_m)
        theta_gradients[(programs, parts, blocks)](
            states,
            d_nodes,
            ends,
            first,
            second,
            sums,
            self.batch,
            self.time,
            states.shape[1],
            d_nodes.shape[1],
            nodes,
            **self.shape(),
            PYRAMID_STATES=self.counts.states,
            PATH=path,
            STATES=count,
            COLUMNS=GRADIENT_COLUMNS,
            BLOCK_M=block_m,
            BLOCK_D=block_d,
            BLOCKS=blocks,
            PRECISION=PRECISION,
            num_warps=GRADIENT_WARPS,
            num_stages=1,
        )
        d_first, d_second = sums.sum(0)[:, :, :rows, :count].unbind(1)
        return d_first, d_second.transpose(1, 2)


def rows_of_a_program(batch: int, device: torch.device) -> int:
    """As few sequences as keep every multiprocessor at work, a power of two."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    )
    rows: int = triton.next_power_of_2(triton.cdiv(batch, processors))
    return min(rows, MOST_ROWS)
