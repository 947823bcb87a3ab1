"""portconv's backend for tally: what portconv must know about the library, and what tally can do faster."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from portconv.backends import Array, Backend, Convolution, Costs, NativeConvolution


class TallyConvolution(NativeConvolution):
    """`tally.convolve`, in place of which portconv's own algorithms serve what it cannot do.

    It has no padding and no gradients. Gradients are convolutions too: see Dumoulin and Visin, "A guide to convolution
    arithmetic for deep learning" (2016), section 4.
    """

    def objection(self, convolution: Convolution) -> str | None:
        return None if convolution.groups == 1 else "one group of channels, as tally.convolve does"

    def forward(self, x: Array, w: Array, b: Array | None, convolution: Convolution) -> Array | None:
        tally = sys.modules["tally"]
        sizes = zip(convolution.before, convolution.x_shape[2:], convolution.after, strict=True)
        padded = _placed(x, [lo + size + hi for lo, size, hi in sizes], convolution.before)
        out = tally.convolve(padded, w, convolution.stride, convolution.dilation)
        return out if b is None else out + tally.Array(b.values.reshape(-1, *(1,) * convolution.dims))

    def input_grad(self, dout: Array, w: Array, convolution: Convolution) -> Array | None:
        tally = sys.modules["tally"]
        if not np.isfinite(w.values).all():
            return None  # zeros around `dout` would make nans of them
        reach = [d * (k - 1) for k, d in zip(convolution.w_shape[2:], convolution.dilation, strict=True)]
        sizes = [size + more for size, more in zip(convolution.x_shape[2:], reach, strict=True)]
        starts = [more - lo for more, lo in zip(reach, convolution.before, strict=True)]
        spread = _placed(dout, sizes, starts, convolution.stride)
        flipped = np.flip(w.values.swapaxes(0, 1), axis=tuple(range(2, w.ndim)))
        return tally.convolve(spread, tally.Array(flipped), (1,) * convolution.dims, convolution.dilation)

    def weight_grad(self, dout: Array, x: Array, convolution: Convolution) -> Array | None:
        tally = sys.modules["tally"]
        windows = zip(
            convolution.out_shape[2:], convolution.stride, convolution.w_shape[2:], convolution.dilation, strict=True
        )
        read = [(n - 1) * step + d * (k - 1) + 1 for n, step, k, d in windows]
        swapped = (_swapped(array) for array in (_placed(x, read, convolution.before), dout))
        return _swapped(tally.convolve(*swapped, convolution.dilation, convolution.stride))


def _placed(array: Array, sizes: Any, starts: Any, steps: Any = None) -> Array:
    """Place the cells of an array among zeros, with this step from one to the next; cells outside are left out."""
    placed = np.zeros((*array.shape[:2], *sizes), array.dtype)
    target, source = [], []
    for cells, size, start, step in zip(array.shape[2:], sizes, starts, steps or (1,) * len(sizes), strict=True):
        first, last = max(0, -(start // step)), min(cells, (size - 1 - start) // step + 1)
        source.append(slice(first, max(first, last)))
        target.append(slice(start + first * step, max(0, start + (max(first, last) - 1) * step + 1), step))
    placed[(..., *target)] = array.values[(..., *source)]
    return type(array)(placed)


def _swapped(array: Array) -> Array:
    """Let samples and channels take each other's place."""
    return type(array)(array.values.swapaxes(0, 1))


class TallyBackend(Backend):
    """Arrays of tally."""

    # The module and the name of the array class identify an array without importing the library.
    name = "tally"
    module = "tally"
    array_class = "Array"
    install = "pip install docs/example_backend"

    # Properties of its arrays. Each is False by default, which is always right and sometimes slower.
    views = True  # a slice shares its array's memory, so a write to the slice changes the array
    propagates = True  # the maximum of numbers is nan if one of them is

    # `portconv bench --backend tally --calibrate` measured these. Only their ratios matter, and only for the
    # algorithm that "auto" takes. A call is expensive, because it unwraps its arrays and wraps the result.
    costs = Costs(operation=0.04, element=0.2, transform=0.4, call=27_000, native=0.1)

    # The convolution that the library has of its own: the algorithm "native".
    native_convolution = TallyConvolution()

    def load(self) -> Any:
        """Import the library. A ModuleNotFoundError for tally means that it is not installed."""
        import tally

        return tally

    def details(self) -> dict[str, str]:
        return {"arrays made": str(self.xp.made)}

    def to_numpy(self, array: Array) -> Any:
        # The default uses DLPack, which tally's arrays do not have.
        return array.values

    def quiet(self) -> AbstractContextManager[Any]:
        # Otherwise NumPy would warn of infinities that an algorithm makes and then handles.
        return np.errstate(all="ignore")

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        # The result is written to its place, which saves an array and a copy for each block.
        if out is None:
            return self.xp.matmul(a, b)
        np.matmul(a.values, b.values, out=out.values)
        return out

    def elementwise(self, name: str, target: Array, index: tuple[Any, ...], *operands: Any) -> Array:
        box = sys.modules[self.module].Array
        plain = (operand.values if isinstance(operand, box) else operand for operand in operands)
        getattr(np, name)(*plain, out=target.values[index])
        return target
