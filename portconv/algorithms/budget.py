"""What cuts work into blocks: how large they may be, how much memory they need, and how long the work takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..backends import Backend
from ..spec.geometry import Geometry

Plan = TypeVar("Plan")

PURPOSES = ("forward", "input_grad", "weight_grad")
SHORT_ROW = 80
"""Elements that could be copied in the time that starting on another row takes."""
FEW_FILTERS = 32
"""With fewer, columns take longer to copy than to multiply."""
LONE_ROW = 1
"""How many rows more a product with few rows seems to have: a product with a vector reads what it multiplies once."""


class Limits(NamedTuple):
    """Bounds on the blocks of a call.

    Attributes
    ----------
    elements : int
        What a block's main arrays hold at most, to stay in cache.
    enough : int
        Columns from which on a product runs at full speed.
    least : int
        The fewest blocks, for threads to share.
    room : int
        Elements that all workspaces of a thread may hold, with what is shared by all threads.
    whole : bool
        Whether the library's own threads share a product better than threads share blocks of it.
    run : int
        Where sums are to be short, the most positions of a weight gradient that are added up at once; or 0.
    """

    elements: int
    enough: int
    least: int
    room: int
    whole: bool = False
    run: int = 0


class Work(NamedTuple):
    """What one product of a convolution takes by one algorithm.

    Attributes
    ----------
    operations : float
        Multiplications and additions of matrix products, those of narrow ones weighted.
    elements : float
        Elements copied or added, those of short rows weighted.
    transforms : float
        Points of Fourier transforms, times the logarithm of how many each has.
    calls : float
        Calls of the array library.
    need : int
        Elements of workspace.
    block : dict of str to int
        The sizes of a block.
    """

    operations: float
    elements: float
    transforms: float
    calls: float
    need: int
    block: dict[str, int]


def limits(geometry: Geometry, backend: Backend, bits: int, room: int) -> Limits:
    """Bounds for elements of so many bits, where workspaces may take `room` bytes."""
    elements = backend.block_bytes * 8 // bits
    least = backend.least_blocks(geometry.operations, geometry.batch)
    # Of few filters the columns take longer than the product, and threads share those.
    whole = (
        geometry.batch == geometry.groups == 1
        and geometry.group_out >= FEW_FILTERS
        and backend.whole(geometry.operations)
    )
    return Limits(elements, backend.block_columns, least, room * 8 // bits, whole)


def fitted(plan: Callable[[int], Plan], need: Callable[[Plan], int], bounds: Limits) -> tuple[Plan, int]:
    """Plan with blocks as large as `bounds` let them be; return the plan, and the elements of workspace that it needs.

    Where even the smallest blocks need more room than there is, that is what is returned.
    """
    elements = min(bounds.elements, bounds.room)
    while True:
        made = plan(elements)
        needed = need(made)
        if needed <= bounds.room or elements == 1:
            return made, needed
        elements = max(1, elements // 2)


def copied(elements: float, row: int) -> float:
    """Weigh elements that are copied in rows of this length."""
    return elements * (1 + SHORT_ROW / max(1, row))


def narrow(operations: float, rows: int) -> float:
    """Weigh the operations of products with so many rows."""
    return operations * (1 + LONE_ROW / max(1, rows))
