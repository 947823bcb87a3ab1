"""What cuts work into blocks: how large blocks may be, how much memory they take, and how long the work takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from ..backends import Backend
from ..spec.geometry import Geometry
from ..spec.ranges import Range

Plan = TypeVar("Plan")

SHORT_ROW = 80
"""Elements that could be copied in the time that starting on another row takes."""
FEW_FILTERS = 32
"""With fewer filters, columns take longer to copy than to multiply."""
LONE_ROW = 1
"""How many more rows a product with few rows seems to have: a product with a vector reads what it multiplies once."""


class Budget(NamedTuple):
    """What the blocks of a product may take.

    Attributes
    ----------
    block_elements : int
        The most elements of the main arrays of a block, which are to stay in cache.
    fast_columns : int
        The number of columns from which on a matrix product runs at full speed.
    least_blocks : int
        The fewest blocks, for threads to share.
    workspace_elements : int
        The most elements of all workspaces of a thread, with what all threads share.
    library_threads : bool
        Whether the library's own threads share a matrix product better than threads share blocks of it.
    summed_positions : int
        The most positions of a weight gradient that are added up at once, where sums are to be short; or 0.
    mirrored : bool
        Whether an input gradient may be the forward product of the mirrored convolution: where filters are not finite,
        it may not.
    limited : bool
        Whether the user set `workspace_elements`. Otherwise an algorithm that computes every result may take more.
    """

    block_elements: int
    fast_columns: int
    least_blocks: int
    workspace_elements: int
    library_threads: bool = False
    summed_positions: int = 0
    mirrored: bool = True
    limited: bool = True


class Work(NamedTuple):
    """What one product of a convolution takes by one algorithm.

    Attributes
    ----------
    operations : float
        Multiplications and additions of matrix products, those of narrow ones weighted.
    elements : float
        Elements copied or added, those of short rows weighted.
    transforms : float
        Points of Fourier transforms, times the logarithm of how many points each has.
    calls : float
        Calls of the array library.
    workspace_elements : int
    block : dict of str to int
        The sizes of a block.
    steps : int
        Blocks, times what each copies: the code to compile, where a library compiles every step.
    """

    operations: float
    elements: float
    transforms: float
    calls: float
    workspace_elements: int
    block: dict[str, int]
    steps: int = 0


NO_WORK = Work(0, 0, 0, 0, 0, {})


def budget_of(geometry: Geometry, backend: Backend, bits: int, workspace: int) -> Budget:
    """Return the budget of a product in elements of so many bits, where workspaces may take so many bytes."""
    # Of few filters the columns take longer than the product, and threads share the columns.
    library_threads = (
        geometry.batch == geometry.groups == 1
        and geometry.group_out >= FEW_FILTERS
        and backend.whole(geometry.operations)
    )
    return Budget(
        block_elements=backend.block_bytes * 8 // bits,
        fast_columns=backend.block_columns,
        least_blocks=backend.least_blocks(geometry.operations, geometry.batch),
        workspace_elements=workspace * 8 // bits,
        library_threads=library_threads,
    )


def fitted(cut: Callable[[int], Plan], workspace: Callable[[Plan], int], budget: Budget) -> tuple[Plan, int]:
    """Return the plan with the largest blocks that the budget allows, and the elements of workspace that it takes.

    `cut` plans blocks of at most so many elements, and `workspace` counts what a plan takes. Where even the smallest
    blocks take more than the budget, their plan is the result.
    """
    elements = min(budget.block_elements, budget.workspace_elements)
    while True:
        plan = cut(elements)
        taken = workspace(plan)
        if taken <= budget.workspace_elements or elements == 1:
            return plan, taken
        elements = max(1, elements // 2)


def longest(ranges: Iterable[Range]) -> int:
    """Return the length of the longest range; 0 where there is none."""
    return max((end - start for start, end in ranges), default=0)


def copied(elements: float, row: int) -> float:
    """Weigh elements that are copied in rows of this length."""
    return elements * (1 + SHORT_ROW / max(1, row))


def narrow(operations: float, rows: int) -> float:
    """Weigh the operations of matrix products with so many rows."""
    return operations * (1 + LONE_ROW / max(1, rows))
