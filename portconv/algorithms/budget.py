"""The budget of the blocks of a product, and the counts of its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..backends import Backend
from ..spec.geometry import Geometry

Plan = TypeVar("Plan")

SHORT_ROW = 80
"""To start on another row takes as long as to copy this many elements."""
FEW_FILTERS = 32
"""With fewer filters than this, it takes longer to copy the columns than to multiply them."""
LONE_ROW = 1
"""This many rows are added to a matrix product, because to read its columns takes as long as to multiply one row."""


class Budget(NamedTuple):
    """The limits on the blocks of a product.

    Attributes
    ----------
    block_elements : int
        The maximum number of elements in the main arrays of a block, so that they stay in cache.
    fast_columns : int
        With this many columns or more, a matrix product runs at full speed.
    least_blocks : int
        The minimum number of blocks, so that every thread has work.
    workspace_elements : int
        The maximum number of elements in all workspaces of a thread, including what all threads share.
    library_threads : bool
        Whether a matrix product is faster on the threads of the library than in blocks on threads of portconv.
    summed_terms : int
        The maximum number of terms that one product adds up, if sums must be short; otherwise 0.
    mirrored : bool
        Whether a product may be computed as one of the mirrored convolution. It may not if operands are not finite.
    limited : bool
        Whether the user set `workspace_elements`. If not, an algorithm that computes every result may take more.
    exact : bool
        Whether operands are whole numbers, whose plain sums are exact.
    dtype : str
        The name of the dtype of an element.
    bits : int
        The bits of an element.
    device : str
        The kind of device that the arrays are on (see `Backend.device_kind`).
    """

    block_elements: int
    fast_columns: int
    least_blocks: int
    workspace_elements: int
    library_threads: bool = False
    summed_terms: int = 0
    mirrored: bool = True
    limited: bool = True
    exact: bool = False
    dtype: str = ""
    bits: int = 32
    device: str = ""


class Work(NamedTuple):
    """The work of one product of a convolution by one algorithm.

    Attributes
    ----------
    operations : float
        Multiplications and additions of matrix products; those of products with few rows count more (see `narrow`).
    elements : float
        Elements that are copied or added; those in short rows count more (see `copied`).
    transforms : float
        Points of Fourier transforms, each times the base-2 logarithm of the points of its transform.
    calls : float
        Calls of the array library.
    workspace_elements : int
        Elements of workspace.
    block : dict of str to int
        The sizes of a block.
    steps : int
        The steps that a library compiles if it compiles every call: the blocks, times the copies of each.
    native : float
        Operations of the library's own convolution.
    """

    operations: float
    elements: float
    transforms: float
    calls: float
    workspace_elements: int
    block: dict[str, int]
    steps: int = 0
    native: float = 0

    @property
    def counts(self) -> tuple[float, float, float, float, float]:
        """What takes time, in the order of `Costs`."""
        return self.operations, self.elements, self.transforms, self.calls, self.native


NO_WORK = Work(0, 0, 0, 0, 0, {})


def budget_of(geometry: Geometry, backend: Backend, bits: int, workspace: int, device: str = "") -> Budget:
    """Return the budget of a product whose elements have `bits` bits, for `workspace` bytes of workspace."""
    # With few filters it takes longer to copy the columns than to multiply them, and only blocks share the copies.
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
        bits=bits,
        device=device,
    )


def fitted(cut: Callable[[int], Plan], workspace: Callable[[Plan], int], budget: Budget) -> tuple[Plan, int]:
    """Return the plan with the largest blocks that the budget allows, and the elements of workspace that it takes.

    `cut` plans blocks of at most the elements it is called with, and `workspace` counts the elements that a plan takes.
    If even the smallest blocks take more than the budget, the result is their plan.
    """
    elements = min(budget.block_elements, budget.workspace_elements)
    while True:
        plan = cut(elements)
        taken = workspace(plan)
        if taken <= budget.workspace_elements or elements == 1:
            return plan, taken
        elements = max(1, elements // 2)


def copied(elements: float, row: int) -> float:
    """Count elements that are copied in rows of this length, together with the start of each row."""
    return elements * (1 + SHORT_ROW / max(1, row))


def narrow(operations: float, rows: int) -> float:
    """Count operations of matrix products with `rows` rows, together with the time to read the columns."""
    return operations * (1 + LONE_ROW / max(1, rows))
