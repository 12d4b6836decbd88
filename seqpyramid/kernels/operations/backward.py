"""The backward pass of a TP-RNN layer, from the last segment to the first.

A node's gradient is the sum of up to four: from its own aggregate, from the step that it drives, from the next layer,
and, for a top, from the shortcut path. All but the first are at hand when its turn comes. The first waits in a slot for
(level, position in the group), since of one level only the states of one group are alive at a time. A sequence that
has not begun yet, seen from the end, has gradients of zero everywhere.

Shapes: B sequences, T time, F inputs, H hidden units, T' inputs of the next layer.
"""

import torch
from torch import Tensor

from seqpyramid.kernels.operations.closing import close, newest
from seqpyramid.kernels.operations.pyramid import levels
from seqpyramid.kernels.operations.states import Course, Nodes, Stretch, Tape, Weights, thetas_of
from seqpyramid.kernels.operations.steps import BackwardSteps
from seqpyramid.kernels.operations.theta import Rooms


class BackwardPass:
    """Everything that one run needs; memory is taken here and not in the run.

    Args:
        weights: of the layer.
        course: of the layer.
        tape: of the forward pass.
        d_output: (H, B), the gradient of the output.
        d_emitted: (T', H, B), that of the next layer's inputs.
        input_gradient: whether the gradient of the inputs is wanted.
    """

    def __init__(
        self,
        weights: Weights,
        course: Course,
        tape: Tape,
        *,
        d_output: Tensor | None,
        d_emitted: Tensor | None,
        input_gradient: bool,
    ) -> None:
        self._course, self._tape, self._d_emitted = course, tape, d_emitted
        like = tape.cells
        _, hidden, batch = like.shape
        self._hidden = hidden
        self._d_output = like.new_zeros(hidden, batch) if d_output is None else d_output
        rooms = Rooms(like, states=max(course.most, 2), hidden=hidden, batch=batch)
        self.thetas = thetas_of(weights, rooms, scrambled=course.pyramids.scrambled)
        self.steps = BackwardSteps(
            weights.steps, hidden=hidden, steps=course.most, batch=batch, input_gradient=input_gradient
        )
        self.d_x = (
            like.new_empty(course.time, len(tape.read[0]) - hidden - 1, batch) if input_gradient else None
        )
        """(time, F, B)."""
        self._nodes_h = Nodes(tape.nodes_h, course, keep=True)
        self._nodes_c = None if weights.theta_c is None else Nodes(tape.nodes_c, course, keep=True)
        self._slots_h, self._slots_c = (
            Nodes(like.new_zeros(Nodes.needed(course, keep=False), hidden, batch), course, keep=False)
            for _ in range(2)
        )
        self._d_path = like.new_zeros(hidden, batch)
        self._zeros = like.new_zeros(hidden, batch)

    def run(self) -> None:
        """Fill ``d_x`` and the sums of the weights' gradients."""
        stretches = list(self._course.stretches())
        for stretch, before in zip(reversed(stretches), [*reversed(stretches[:-1]), None], strict=True):
            self._run(stretch, self._driving_c(before))

    def _driving_c(self, before: Stretch | None) -> Tensor:
        """The c that drives the step after a segment."""
        if before is None:
            return self._zeros
        if self._nodes_c is None:
            return self._tape.cells[before.last - 1]
        last = before.segment.aggregations[-1]
        return self._nodes_c.one(before.pyramid, last.level + 1, last.made)

    def _run(self, stretch: Stretch, c_before: Tensor) -> None:
        first, last = stretch.first, stretch.last
        count = last - first
        steps, tape, hidden = self.steps, self._tape, self._hidden
        read, gates, cells = tape.read[first:last], tape.gates[first:last], tape.cells[first:last]
        steps.prepare(gates, cells, c_before)
        h, driven_h = steps.h[:count], steps.d_read[0, :hidden]
        d_h, d_c = steps.d_read[1 : count + 1, :hidden], steps.d_cells[:count]

        if not stretch.complete:
            d_h.zero_()
        if last % self._course.pyramids.length:
            self._leave(last, h, d_h)
        if stretch.complete:
            self._aggregate(stretch, h, d_h, driven_h)
        if not self._course.pyramids.top_down:
            d_h[-1] += driven_h
        self._aggregate_cells(stretch, cells, d_c)
        for end in range(last - 1, first, -1):
            self._leave(end, h, d_h)

        driven_h.zero_()
        d_inputs = steps.d_read[:count, hidden:]
        d_inputs.zero_()
        steps.run(read, gates)
        if self.d_x is not None:
            self.d_x[first:last] = d_inputs

    def _aggregate(self, stretch: Stretch, h: Tensor, d_h: Tensor, driven_h: Tensor) -> None:
        """Go back through a segment's aggregations of h, to the gradients of its steps."""
        course, pyramid = self._course, stretch.pyramid
        d_top = self._extend(stretch) if stretch.last % course.pyramids.length == 0 else None
        for k in range(len(stretch.segment.aggregations) - 1, -1, -1):
            level, first, size, made = stretch.segment.aggregations[k]
            above = level + 1
            dy = self._slots_h.one(pyramid, above, made)
            if k == len(stretch.segment.aggregations) - 1:
                if d_top is not None:
                    dy = d_top
                if course.pyramids.top_down:
                    dy += driven_h
            if above == course.pyramids.emitted_level:
                columns = slice(0, course.running(stretch.last))
                self._add_emitted(dy[:, columns], course.emitted(pyramid, made), columns)
            y = self._nodes_h.one(pyramid, above, made)
            if level:
                e, de = (nodes.group(pyramid, level, first, size) for nodes in (self._nodes_h, self._slots_h))
            else:
                e, de = h, d_h
            self.thetas.h.backward(e, y, dy, de)

    def _aggregate_cells(self, stretch: Stretch, cells: Tensor, d_c: Tensor) -> None:
        """Do the same for c; without aggregates of it, or before the last step, the next step's c is all there is."""
        driven = self.steps.d_c_before
        if self.thetas.c is None or self._nodes_c is None or stretch.last == self._course.time:
            d_c[:-1].zero_()
            d_c[-1] = driven
            return
        pyramid, aggregations = stretch.pyramid, stretch.segment.aggregations
        closing = stretch.last % self._course.pyramids.length == 0
        for k in range(len(aggregations) - 1, -1, -1):
            level, first, size, made = aggregations[k]
            above = level + 1
            dy = self._slots_c.one(pyramid, above, made)
            if k == len(aggregations) - 1:
                dy = driven if closing else dy.add_(driven)
            y = self._nodes_c.one(pyramid, above, made)
            if level:
                e, de = (nodes.group(pyramid, level, first, size) for nodes in (self._nodes_c, self._slots_c))
            else:
                e, de = cells, d_c
            self.thetas.c.backward(e, y, dy, de)

    def _extend(self, stretch: Stretch) -> Tensor:
        """Go back through the shortcut path at a closed sub-pyramid, to the gradient of its top."""
        course, pyramid = self._course, stretch.pyramid
        columns = course.ending.get(stretch.last, slice(0))
        self._d_path[:, columns] = self._d_output[:, columns]
        if self.thetas.path is None or pyramid == 0:
            d_top, self._d_path = self._d_path, torch.zeros_like(self._d_path)
            return d_top
        top = self._nodes_h.one(pyramid, len(course.skeleton.counts) - 1, 0)
        e = newest(self._tape.path[pyramid - 1], top, top_first=course.pyramids.top_first)
        de = torch.empty_like(e)
        self.thetas.path.backward(e, self._tape.path[pyramid], self._d_path, de)
        d_top, self._d_path = _top_and_before(de, top_first=course.pyramids.top_first)
        return d_top

    def _leave(self, end: int, h: Tensor, d_h: Tensor) -> None:
        """Go back through what the sequences of ``end`` steps close for themselves, and add to their gradients."""
        course = self._course
        columns = course.ending.get(end)
        if columns is None:
            return
        closed, top = close(course, self._nodes_h, h, self.thetas.h, end)
        pyramid, steps = divmod(end, course.pyramids.length)
        height, level = levels(steps, course.pyramids.granularity), course.pyramids.emitted_level
        place = course.emitted(pyramid, steps // course.pyramids.granularity**level)
        dy = self._d_output[:, columns].clone()
        if self.thetas.path is not None and pyramid:
            dy = self._leave_path(pyramid, top, dy, columns)
        if height < level:
            self._add_emitted(dy, place, columns)
        for aggregation in reversed(closed):
            if aggregation.level + 1 == level:
                self._add_emitted(dy, place, columns)
            de = torch.empty_like(aggregation.e)
            self.thetas.h.backward(aggregation.e, aggregation.y, dy, de)
            level_below, common = aggregation.level, aggregation.common
            slots = self._slots_h.group(pyramid, level_below, 0, common) if level_below else d_h[:common]
            slots[..., columns] += de[:common]
            dy = de[-1]
        if not closed:
            self._slots_h.one(pyramid, height, 0)[:, columns] += dy

    def _leave_path(self, pyramid: int, top: Tensor, dy: Tensor, columns: slice) -> Tensor:
        """Go back through the last piece of their shortcut path, to the gradient of their top."""
        assert self.thetas.path is not None
        top_first = self._course.pyramids.top_first
        e = newest(self._tape.path[pyramid - 1][:, columns], top, top_first=top_first)
        y, de = torch.empty_like(top), torch.empty_like(e)
        self.thetas.path.aggregate(e, y)
        self.thetas.path.backward(e, y, dy, de)
        d_top, d_before = _top_and_before(de, top_first=top_first)
        self._d_path[:, columns] += d_before
        return d_top

    def _add_emitted(self, dy: Tensor, place: int, columns: slice) -> None:
        if self._d_emitted is not None and place < len(self._d_emitted):
            dy += self._d_emitted[place, :, columns]


def _top_and_before(pair: Tensor, *, top_first: bool) -> tuple[Tensor, Tensor]:
    """Undo the order of :func:`seqpyramid.kernels.operations.closing.newest`."""
    first, second = pair.unbind(0)
    return (first, second) if top_first else (second, first)
