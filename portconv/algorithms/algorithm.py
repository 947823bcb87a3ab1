"""What an algorithm is: one class, which says what it serves, what it takes and how large its error is, and computes.

Arrays are batches of one dtype, channels first, padded with zeros: `x` (N, C, *S), `w` (F, C/G, *K), `b` (F,) or None,
`dout` (N, F, *P). Where the caller has channels last, `x` and `dout` are views in that order of arrays that lie in
memory as the caller's do, and so are results.

Defining a subclass registers one instance of it. A new algorithm is a new module of this folder, and no other file
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
from typing import Any, ClassVar, TypeVar

from ..backends import Array, Backend
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from .budget import Budget, Work, fitted
from .mirrored import beside_filters, mirrored

Result = TypeVar("Result")
PlainProduct = Callable[[Kind, Geometry, Array, Array], Array]
"""Gives the product of that kind of two arrays of magnitudes, computed by plain sums."""

SLICED = "slices"
"""The kind of a dtype that holds whole numbers which no algorithm may round."""

_registered: dict[str, Algorithm] = {}
_remembering: list[_lru_cache_wrapper[Any]] = []


def remembered(maxsize: int) -> Callable[[Callable[..., Result]], _lru_cache_wrapper[Result]]:
    """Decorate a function as `lru_cache` does; registering an algorithm forgets what is remembered."""

    def decorate(function: Callable[..., Result]) -> _lru_cache_wrapper[Result]:
        remembering = lru_cache(maxsize=maxsize)(function)
        _remembering.append(remembering)
        return remembering

    return decorate


def forget() -> None:
    """Forget all that `remembered` functions remember."""
    for remembering in _remembering:
        remembering.cache_clear()


def register(algorithm: Algorithm) -> None:
    """Make an algorithm known by its name."""
    _registered[algorithm.name] = algorithm
    forget()


def withdraw(name: str) -> None:
    """Make an algorithm unknown again."""
    _registered.pop(name, None)
    forget()


def registered() -> list[Algorithm]:
    """Return the algorithms whose modules are imported, in their order."""
    return sorted(_registered.values(), key=lambda algorithm: algorithm.order)


class Algorithm:
    """A way to compute the three products of a convolution.

    Attributes
    ----------
    name : str
    order : int
        Where it stands in `portconv.algorithms()`; smaller is earlier.
    handicap : float
        How much faster than another algorithm it must be expected to be, to be taken.
    automatic : bool
        Whether ``algorithm="auto"`` considers it.
    vouches : bool
        Whether it computes every result, whatever the numbers are, but for an input gradient by mirrored filters that
        are not finite (see `Budget.mirrored`).
    plain_sums : bool
        Whether its error is in proportion to the plain sums of magnitudes; otherwise `magnitudes` says to what.
    slices_integers : bool
        Whether integers are cut into slices of floating-point numbers for it.
    pads_input : bool
        Whether it makes a copy of the whole input with its padding.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 50
    handicap: ClassVar[float] = 1.0
    automatic: ClassVar[bool] = True
    vouches: ClassVar[bool] = False
    plain_sums: ClassVar[bool] = True
    slices_integers: ClassVar[bool] = True
    pads_input: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls())

    def __repr__(self) -> str:
        return f"<portconv algorithm {self.name!r}>"

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Say what it serves, where it does not serve this call; None where it does."""
        return None

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count what a product that it serves takes."""
        raise NotImplementedError

    def compute(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, *operands: Array
    ) -> Array | None:
        """Compute a product of `x`, `w` and a bias or None, of `dout` and `w`, or of `dout` and `x`.

        None where the algorithm cannot vouch for the result.
        """
        if not geometry.batch or (kind == Kind.INPUT_GRAD and 0 in geometry.size):
            return backend.zeros(geometry.shape(Kind(kind).result), like=operands[0])
        result: Array | None = getattr(self, kind)(geometry, backend, budget, *operands)
        return result

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        """Compute the output, or None."""
        raise NotImplementedError

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        """Compute the gradient of the input, or None: of stride 1, the output of the mirrored convolution.

        Cells beyond an edge of `dout` are no part of any sum, but zeros in the mirrored convolution, and 0 times
        infinity is nan.
        """
        if not backend.all_finite(w):
            return None
        left, flipped = beside_filters(geometry, budget), mirrored(geometry, backend, w)
        return self.forward(geometry.mirrored, backend, left, dout, flipped, None)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        """Compute the gradient of the filters, or None."""
        raise NotImplementedError

    def plan(self, kind: str, geometry: Geometry, budget: Budget) -> tuple[Any, int]:
        """Cut a product within a budget; return the plan, and the elements of workspace that it takes."""
        return _planned(self, kind, geometry, budget)

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Any:
        """Cut a product into blocks of at most so many elements, where `plan` is used."""
        raise NotImplementedError

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Any) -> int:
        """Count the elements of workspace of a plan: of a block, and of what all blocks share."""
        raise NotImplementedError

    def mirrored_work(self, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count what an input gradient takes as the output of the mirrored convolution, with a copy of the filters."""
        work = self.work(Kind.FORWARD, geometry.mirrored, beside_filters(geometry, budget), backend)
        return work._replace(
            elements=work.elements + geometry.weights, workspace_elements=work.workspace_elements + geometry.weights
        )

    def roundings(self, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
        """Count the roundings that a product of finite numbers goes through at most, its own among them."""
        return geometry.terms(kind)

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings that the error bound of an element allows for.

        Each term of a sum is so many products of real numbers: of complex numbers, 2.
        """
        return products * geometry.terms(kind)

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Bound what the error of each element is in proportion to, for operands `a` and `b` of magnitudes."""
        return product(kind, geometry, a, b)

    def sharp_magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Bound the same as closely as is known, in however much time and memory that takes."""
        return self.magnitudes(kind, geometry, backend, product, a, b)


@remembered(4096)
def _planned(algorithm: Algorithm, kind: str, geometry: Geometry, budget: Budget) -> tuple[Any, int]:
    """Cut a product: what `Algorithm.plan` returns."""
    return fitted(
        lambda elements: algorithm.cut(kind, geometry, budget, elements),
        lambda plan: algorithm.workspace_elements(kind, geometry, plan),
        budget,
    )
