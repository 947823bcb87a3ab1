"""Arrays that begin or end at a page that nobody may touch: a load or a store beyond an array ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
NO_ACCESS = 0


class Guarded:
    """Memory between two pages without access, for an array at its end or at its beginning."""

    def __init__(self, nbytes: int) -> None:
        self.inner = -(-max(1, nbytes) // PAGE) * PAGE
        self.memory = mmap.mmap(-1, self.inner + 2 * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        for place in (self.start - PAGE, self.start + self.inner):
            if libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(PAGE), NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, shape: tuple[int, ...], *, at_end: bool, dtype: Any = np.float32) -> Any:
        """Return an array of this shape at one end of the memory."""
        nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        offset = self.inner - nbytes if at_end else 0
        buffer = (ctypes.c_char * nbytes).from_address(self.start + offset)
        return np.frombuffer(buffer, dtype).reshape(shape)


def guarded(array: Any, *, at_end: bool) -> tuple[Any, Guarded]:
    """Return a copy of an array beside a page without access, and the memory, which must be kept."""
    memory = Guarded(array.nbytes)
    copy = memory.array(array.shape, at_end=at_end, dtype=array.dtype)
    copy[...] = array
    return copy, memory
