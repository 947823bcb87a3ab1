"""The base class of all algorithms.

An algorithm says which calls it supports, counts the work and the workspace of a product, bounds the error of the
result, and computes it.

Arrays are batches of one dtype, channels first, padded with zeros: `x` (N, C, *S), `w` (F, C/G, *K), `b` (F,) or None,
`dout` (N, F, *P). Where the caller has channels last, `x`, `dout` and the results are views in this order; in memory
their channels come last.

Defining a subclass registers one instance of it. To add an algorithm, add a module to this folder; no other file needs
a change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..backends import Array, Backend
from ..errors import BackendError
from ..spec.dtypes import Dtype
from ..spec.geometry import Geometry
from ..spec.operation import Kind
from ..spec.remembered import forget, remembered
from .budget import Budget, Work, fitted
from .mirrored import beside_filters, mirrored

PlainProduct = Callable[[Kind, Geometry, Array, Array], Array]
"""A function that computes the product of that kind of two arrays of magnitudes, by plain sums."""


RoundedProduct = Callable[..., Array | None]
"""A function that rounds a product of two operands to float32 and adds a bias or None. It may be given `magnitudes`:
the largest ones of each sample's channel (N, C), in float64, of each operand that has samples. It returns None where
slices should be faster, and where a number is not finite, or results may be subnormal or infinite."""
RoundedSums = Callable[..., Array | None]
"""A function that quantises the channels of an array (N, C, ...), adds each up and rounds the sum to float32. After the
array may come its magnitudes. It returns None as a `RoundedProduct` does."""

SLICED = "slices"
"""The kind of a dtype that holds whole numbers, which no algorithm may round."""

_registered: dict[str, Algorithm] = {}


class LibraryError(BackendError):
    """A library failed inside one of its own functions, for want of memory or of code for the call."""


def register(algorithm: Algorithm) -> None:
    """Add an algorithm to those that users can name; all choices are made anew."""
    _registered[algorithm.name] = algorithm
    forget()


def withdraw(name: str) -> None:
    """Remove the algorithm of this name from those that users can name; all choices are made anew."""
    _registered.pop(name, None)
    forget()


def registered() -> list[Algorithm]:
    """Return the algorithms whose modules are imported, sorted by their `order`."""
    return sorted(_registered.values(), key=lambda algorithm: algorithm.order)


class Algorithm:
    """A way to compute the three products of a convolution.

    Attributes
    ----------
    name : str
    order : int
        Its place in `portconv.algorithms()`: a smaller number comes earlier.
    handicap : float
        The factor by which its expected time is multiplied before it is compared with the others.
    times_of_complex : float
        How many times as long as its work says a product of complex numbers takes.
    automatic : bool
        Whether ``algorithm="auto"`` considers it.
    vouches : bool
        Whether it computes every result, whatever the numbers are. The one exception is a product of the mirrored
        convolution, if its operands are not finite (see `Budget.mirrored`).
    plain_sums : bool
        Whether its error is in proportion to the plain sums of magnitudes. Otherwise the error is in proportion to
        what `magnitudes` returns.
    pads_input : bool
        Whether it copies the whole input together with its padding.
    grows : bool
        Whether only a limit that the user has set holds for its workspace, and not the default one.
    sums_slices : bool
        Whether its sums of slices are exact: a plain sum of whole numbers in float64 is.
    takes_rows : bool
        Whether it takes only operands whose elements lie one after the other in memory.
    widens_halves : bool
        Whether float16 and bfloat16 become float32 before it gets them. Otherwise its results are in either dtype.
    rounds_sums : bool
        Whether it may round a sum to float16 or bfloat16 before it adds the bias.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 50
    handicap: ClassVar[float] = 1.0
    times_of_complex: ClassVar[float] = 4.0
    automatic: ClassVar[bool] = True
    vouches: ClassVar[bool] = False
    plain_sums: ClassVar[bool] = True
    pads_input: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    sums_slices: ClassVar[bool] = True
    takes_rows: ClassVar[bool] = False
    widens_halves: ClassVar[bool] = True
    rounds_sums: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls())

    def __repr__(self) -> str:
        return f"<portconv algorithm {self.name!r}>"

    def objection(self, geometry: Geometry, dtype: Dtype, backend: Backend) -> str | None:
        """Return None if the algorithm supports this call; otherwise say what it does support.

        The words end a sentence: "serves ..." in `explain`, and "expected 'auto', or ..." in an error. `dtype.kind` is
        "real floating", "complex floating" or "integral": what the algorithm computes in, after halves became float32.
        Integers come as they are only where `integer_bits` says so, or where the library has no float64.
        """
        return None

    def integer_bits(self, bits: int) -> int:
        """Return in how many bits it multiplies integers of so many bits; 0 where these are cut into slices for it."""
        return 0

    def lacks(self, kind: str, geometry: Geometry, device: str) -> str | None:
        """Return None if the algorithm has this product, on this kind of device; otherwise say which products it has.

        The words end the same sentences as those of `objection`.
        """
        return None

    def work(self, kind: str, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of a product that the algorithm supports."""
        raise NotImplementedError

    def compute(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, *operands: Array
    ) -> Array | None:
        """Compute a product of `x`, `w` and a bias or None, of `dout` and `w`, or of `dout` and `x`.

        Return None if the algorithm cannot vouch for the result.
        """
        if not geometry.batch or (kind == Kind.INPUT_GRAD and 0 in geometry.size):
            return backend.zeros(geometry.shape(Kind(kind).result), like=operands[0])
        result: Array | None = getattr(self, kind)(geometry, backend, budget, *operands)
        return result

    def repeated(
        self, kind: str, geometry: Geometry, backend: Backend, budget: Budget, operands: tuple[Array, ...]
    ) -> Callable[..., Array | None] | None:
        """Return what computes a product of arrays that lie in memory as `operands` do, or None.

        The function returns None for a result that needs a second look: one that is not finite.
        """
        return None

    def channel_sums(self, backend: Backend, cells: Array) -> Callable[[Array], Array | None] | None:
        """Return what adds up the numbers of each channel of arrays (N, C, ...) that lie in memory as `cells` does.

        The function returns None for sums that need a second look: those that are not finite.
        """
        return None

    def plane_magnitudes(self, backend: Backend, cells: Array) -> Array | None:
        """Return the largest magnitude of each channel of an array (N, C, ...) in float64, (N, C).

        None if the algorithm cannot, or if not all elements are finite.
        """
        return None

    def rounded_sums(self, backend: Backend, shape: tuple[int, ...]) -> RoundedSums | None:
        """Return what adds up the channels of arrays of float32 of this shape (N, C, ...), as if sums were exact."""
        return None

    def rounded(self, kind: Kind, geometry: Geometry, backend: Backend, budget: Budget) -> RoundedProduct | None:
        """Return what quantises operands of float32, computes their product as if sums were exact, and rounds it."""
        return None

    def forward(
        self, geometry: Geometry, backend: Backend, budget: Budget, x: Array, w: Array, b: Array | None
    ) -> Array | None:
        """Compute the output; return None if the algorithm cannot vouch for it."""
        raise NotImplementedError

    def input_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, w: Array) -> Array | None:
        """Compute the gradient of the input; return None if the algorithm cannot vouch for it.

        At stride 1 this gradient is the output of the mirrored convolution. That convolution also multiplies filters by
        zeros beyond the edges of `dout`, which are no part of any sum of the gradient. As 0 times infinity is nan, all
        filters must be finite.
        """
        if not backend.all_finite(w):
            return None
        budget, flipped = beside_filters(geometry, budget), mirrored(geometry, backend, w)
        return self.forward(geometry.mirrored, backend, budget, dout, flipped, None)

    def weight_grad(self, geometry: Geometry, backend: Backend, budget: Budget, dout: Array, x: Array) -> Array | None:
        """Compute the gradient of the filters; return None if the algorithm cannot vouch for it."""
        raise NotImplementedError

    def plan(self, kind: str, geometry: Geometry, budget: Budget) -> tuple[Any, int]:
        """Cut a product into blocks within a budget; return the plan, and the elements of workspace that it takes."""
        return _planned(self, kind, geometry, budget)

    def cut(self, kind: str, geometry: Geometry, budget: Budget, elements: int) -> Any:
        """Cut a product into blocks of at most `elements` elements; `plan` calls it, with fewer and fewer."""
        raise NotImplementedError

    def workspace_elements(self, kind: str, geometry: Geometry, plan: Any) -> int:
        """Count the elements of workspace that a plan takes: for one block, and for what all blocks share."""
        raise NotImplementedError

    def mirrored_work(self, geometry: Geometry, budget: Budget, backend: Backend) -> Work:
        """Count the work of an input gradient by the mirrored convolution, which takes a copy of the filters."""
        work = self.work(Kind.FORWARD, geometry.mirrored, beside_filters(geometry, budget), backend)
        return work._replace(
            elements=work.elements + geometry.weights, workspace_elements=work.workspace_elements + geometry.weights
        )

    def roundings(self, kind: str, geometry: Geometry, backend: Backend, budget: Budget) -> int:
        """Count how often a term of a sum is rounded at most, its multiplication included; all numbers are finite."""
        return geometry.terms(kind)

    def error_terms(self, kind: str, geometry: Geometry, products: int = 1) -> int:
        """Count the roundings that the error bound of an element allows for.

        Each term of a sum consists of `products` products of real numbers: 1 for real numbers, 2 for complex numbers.
        """
        return products * geometry.terms(kind)

    def magnitudes(
        self, kind: Kind, geometry: Geometry, backend: Backend, product: PlainProduct, a: Array, b: Array
    ) -> Array:
        """Return, for operands `a` and `b` of magnitudes, what the error bound of each element is in proportion to."""
        return product(kind, geometry, a, b)


@remembered()
def _planned(algorithm: Algorithm, kind: str, geometry: Geometry, budget: Budget) -> tuple[Any, int]:
    """Return what `Algorithm.plan` returns."""
    return fitted(
        lambda elements: algorithm.cut(kind, geometry, budget, elements),
        lambda plan: algorithm.workspace_elements(kind, geometry, plan),
        budget,
    )
