"""The forward pass of a TP-RNN layer, segment by segment.

All columns run to the end of the longest; what a column holds past its own end is never read.

Shapes: B sequences, T time, F inputs, H hidden units, T' inputs of the next layer.
"""

import torch
from torch import Tensor

from seqpyramid.kernels.operations.closing import close, newest
from seqpyramid.kernels.operations.pyramid import levels
from seqpyramid.kernels.operations.states import Course, Nodes, Stretch, Tape, Weights, thetas_of
from seqpyramid.kernels.operations.steps import ForwardSteps
from seqpyramid.kernels.operations.theta import Rooms


class ForwardPass:
    """Everything that one run needs; memory is taken here and not in the run.

    Args:
        x: (B, T, F).
        weights: of the layer.
        course: of the layer.
        tape: what is written.
        keep: whether the tape holds all steps.
    """

    def __init__(self, x: Tensor, weights: Weights, course: Course, tape: Tape, *, keep: bool) -> None:
        self._weights, self._course, self._tape, self._keep = weights, course, tape, keep
        hidden, batch = weights.hidden, len(x)
        self._x = x.permute(1, 2, 0)
        self._nodes_h = Nodes(tape.nodes_h, course, keep=keep)
        self._nodes_c = None if weights.theta_c is None else Nodes(tape.nodes_c, course, keep=keep)
        rooms = Rooms(x, states=max(course.most, 2), hidden=hidden, batch=batch)
        self._thetas = thetas_of(weights, rooms, scrambled=course.pyramids.scrambled)
        self._squashed = x.new_empty(hidden, batch)
        self._c = x.new_zeros(hidden, batch)  # what drives the next step
        self._before: Tensor | None = None  # the shortcut path so far
        self.output = x.new_empty(hidden, batch)
        self.emitted = x.new_zeros(course.pyramids.emitted_time, hidden, batch)

    def run(self) -> None:
        """Fill ``output`` (H, B), ``emitted`` (T', H, B) and the tape."""
        hidden, read = self._weights.hidden, self._tape.read
        read[:, -1] = 1
        read[0, :hidden] = 0
        if self._keep:
            read[: self._course.time, hidden:-1] = self._x[: self._course.time]
            for stretch in self._course.stretches():
                self._run(stretch, stretch.first, self._views(stretch.first, stretch.last))
        else:
            views = self._views(0, self._course.most)
            for stretch in self._course.stretches():
                count = stretch.last - stretch.first
                read[:count, hidden:-1] = self._x[stretch.first : stretch.last]
                self._run(stretch, 0, views)
                read[0, :hidden] = read[count, :hidden]

    def _views(self, first: int, last: int) -> ForwardSteps:
        gates = self._tape.gates
        gates = gates[first:last] if self._keep else gates.expand(last, -1, -1, -1)
        return ForwardSteps(self._tape.read[first : last + 1], gates, self._tape.cells[first:last])

    def _run(self, stretch: Stretch, place: int, views: ForwardSteps) -> None:
        """Do the steps of a segment and what follows them; on the tape they begin at ``place``."""
        count = stretch.last - stretch.first
        views.run(self._weights.steps, self._c, self._squashed, count)
        h = self._tape.read[place + 1 : place + count + 1, : self._weights.hidden]
        cells = self._tape.cells[place : place + count]
        self._c = cells[-1]
        for end in range(stretch.first + 1, stretch.last):
            self._leave(end, h)
        if stretch.complete:
            self._aggregate(stretch, h, cells)
        if stretch.last % self._course.pyramids.length:
            self._leave(stretch.last, h)

    def _aggregate(self, stretch: Stretch, h: Tensor, cells: Tensor) -> None:
        """Aggregate what a segment completes, for all sequences."""
        course, pyramid = self._course, stretch.pyramid
        top_down = course.pyramids.top_down
        for level, first, size, made in stretch.segment.aggregations:
            above = level + 1
            node = self._nodes_h.one(pyramid, above, made)
            self._thetas.h.aggregate(self._nodes_h.group(pyramid, level, first, size) if level else h, node)
            if above == course.pyramids.emitted_level:
                running = course.running(stretch.last)
                self.emitted[course.emitted(pyramid, made), :, :running] = node[:, :running]
            if self._thetas.c is not None and self._nodes_c is not None and stretch.last < course.time:
                self._c = self._nodes_c.one(pyramid, above, made)
                group = self._nodes_c.group(pyramid, level, first, size) if level else cells
                self._thetas.c.aggregate(group, self._c)
        if stretch.last % course.pyramids.length == 0:
            self._extend(pyramid, node)
            columns = course.ending.get(stretch.last, slice(0))
            assert self._before is not None
            self.output[:, columns] = self._before[:, columns]
        if top_down:
            h[-1] = node

    def _extend(self, pyramid: int, top: Tensor) -> None:
        """Take a closed sub-pyramid's top into the shortcut path."""
        path = self._tape.path[pyramid if self._keep else 0]
        if self._thetas.path is None or self._before is None:
            path.copy_(top)
        else:
            e = newest(self._before, top, top_first=self._course.pyramids.top_first)
            self._thetas.path.aggregate(e, path)
        self._before = path

    def _leave(self, end: int, h: Tensor) -> None:
        """Close the open sub-pyramid for the sequences of ``end`` steps."""
        course = self._course
        columns = course.ending.get(end)
        if columns is None:
            return
        closed, top = close(course, self._nodes_h, h, self._thetas.h, end)
        pyramid, steps = divmod(end, course.pyramids.length)
        level = course.pyramids.emitted_level
        place = course.emitted(pyramid, steps // course.pyramids.granularity**level)
        for aggregation in closed:
            if aggregation.level + 1 == level:
                self.emitted[place, :, columns] = aggregation.y
        if levels(steps, course.pyramids.granularity) < level:
            self.emitted[place, :, columns] = top
        if self._thetas.path is None or self._before is None:
            self.output[:, columns] = top
        else:
            y = torch.empty_like(top)
            e = newest(self._before[:, columns], top, top_first=course.pyramids.top_first)
            self._thetas.path.aggregate(e, y)
            self.output[:, columns] = y
