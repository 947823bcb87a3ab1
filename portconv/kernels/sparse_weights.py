"""Gradients of filters of which many taps read padding: each tap meets the columns and rows alone where it does not.

A share is that of `weights`, but a run is one row of outputs. Its lines say which taps of the dimensions before the
last read cells of the input, and each tap of a row has columns of its own. What is not finite would spoil taps that
read padding too, so the gradients of outputs are looked at.
"""

from __future__ import annotations

from .emit import Module
from .lane_totals import spoiled
from .row_copies import Copies
from .row_lines import EVERY_CELL
from .target import Target
from .values import INTEGER, Int, Pointer
from .weight_plan import sparse_plan_of as plan_of
from .weights import ShareOfCells, written

__all__ = ["VARIANTS", "module", "plan_of"]

VARIANTS = (EVERY_CELL,)


def module(target: Target, variant: str) -> Module:
    """Write the kernel."""
    return written(target, Copies(target, variant), ShareOfRows)


class ShareOfRows(ShareOfCells):
    """A share whose runs are rows, which leave out what is padding."""

    def begin(self, sums: Pointer, channels: Int, tiles: Int, pitch: Int) -> None:
        code, plan = self.code, self.plan
        with code.loop(0, tiles) as tile, code.loop(0, channels * plan.taps * plan.filters_of_tile, code.lanes) as at:
            code.store(code.zeros, sums + tile * pitch + at, align=code.bytes)

    def write_terms(self, terms: Pointer, channels: Int) -> None:
        super().write_terms(terms, channels)
        code, plan = self.code, self.plan
        with code.loop(0, channels) as channel:
            terms[channel] = channel * plan.channel_pitch

    def multiply(self, arrays: tuple[Pointer, ...], numbers: tuple[Int, ...]) -> None:
        code, plan, (panel, cells, terms, sums), (channels, at, *_) = self.code, self.plan, arrays, numbers
        lines = (code.given[5].of("i8") + plan.at_lines).of(INTEGER)
        row_taps, ends = (plan.pointer(name, INTEGER) for name in ("row_taps", "columns_of_taps"))
        order, width = self.order_of(at), plan.filters_of_tile
        of_row = plan.taps_of_row
        with code.loop(0, plan.taps) as tap:
            line = order[0] // plan.line_pitch + row_taps[tap] // plan.line_pitch
            start, stop = ends[tap % of_row * 2], ends[tap % of_row * 2 + 1]
            with code.when((lines[line * 2] >= 0) & (start < stop)):
                self.run(
                    (panel + start * width, cells + row_taps[tap], terms, order + start, sums + tap * width),
                    (plan.taps * width, 1, channels, stop - start, code.variable(0).get()),
                )

    def panel_of(self, dout: Pointer, filters: Int, length: Int) -> Pointer:
        code, plan = self.code, self.plan
        with code.loop(0, code.minimum(filters, plan.filters_of_tile)) as filter_:
            self.flag.set(self.flag.get() + spoiled(code, dout + filter_ * plan.filter_pitch, length))
        return super().panel_of(dout, filters, length)
