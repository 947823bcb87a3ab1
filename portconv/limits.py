"""The limits of a call: how much memory it takes beside its result, and how many threads."""

from __future__ import annotations

import operator
import os
import sys
from contextlib import AbstractContextManager, ContextDecorator, nullcontext
from contextvars import ContextVar
from functools import cache

from .errors import ConvTypeError, ConvValueError

SHARE_OF_LIMIT = 4
"""Blocks of reproducible results may take one fourth of the limit that the user set."""
SIZE_IN_QUARTERS = 9
"""Blocks of reproducible results are 9/4 of the size of other blocks, because they take more steps and more arrays."""
MOST_THREADS = 4096
"""More threads than any machine has CPUs; a library may not survive an attempt to start as many as one asks for."""
MOST_BYTES = sys.maxsize
"""More than an address can name."""

_workspace: ContextVar[int | None] = ContextVar("portconv.workspace_limit", default=None)
_threads: ContextVar[int | None] = ContextVar("portconv.num_threads", default=None)


def workspace_limit(nbytes: int) -> AbstractContextManager[None]:
    """Limit the memory that a call takes beside its result.

    If no limit is set, the environment variable ``PORTCONV_WORKSPACE_LIMIT``, read once, is the limit of the process.
    If that is not set either, a call takes 64 MiB on a CPU and 512 MiB on a GPU, and a reproducible call four times
    that; a call that needs more takes the least that it needs. Under a smaller limit blocks are smaller, and algorithms
    that need more are not considered. The result may then differ in its last bits, unless it is reproducible.

    Parameters
    ----------
    nbytes : int
        The most bytes of arrays for each thread of a call: workspaces, copies of arguments in another dtype or with
        their padding filled in, and partial sums. Arrays that all threads of a call share count for the first thread.

    Returns
    -------
    context manager
        The limit holds inside, in the thread or task that entered it.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `nbytes` is no int, not positive, or more than an address can name. A call for which the limit is too small
        raises a ConvValueError itself.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((4, 8, 64, 64), "float32"), np.ones((8, 8, 3, 3), "float32")
    >>> with portconv.workspace_limit(1 << 20):
    ...     portconv.explain(x, w).workspace_bytes <= 1 << 20
    True
    """
    return _Within(_workspace, _positive("nbytes", nbytes, MOST_BYTES))


def num_threads(n: int) -> AbstractContextManager[None]:
    """Set how many threads a call may use.

    If no number is set, the environment variable ``PORTCONV_NUM_THREADS``, read once, is the number of the process. If
    that is not set either, the library's setting is: on NumPy as many threads as its BLAS may use. On NumPy and PyTorch
    the BLAS is limited to this number during the call, and restored after it; other libraries keep their settings. No
    number changes the result.

    Parameters
    ----------
    n : int
        The maximum number of threads.

    Returns
    -------
    context manager
        The number holds inside, in the thread or task that entered it.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `n` is no int, not positive, or more than 4096.

    Examples
    --------
    >>> import numpy as np
    >>> with portconv.num_threads(1):
    ...     portconv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    array([[[3., 3., 3.]]])
    """
    return _Within(_threads, _positive("n", n, MOST_THREADS))


def within(nbytes: int | None) -> AbstractContextManager[None]:
    """Limit the memory inside to `nbytes` bytes, without a check; None changes nothing."""
    return nullcontext() if nbytes is None else _Within(_workspace, nbytes)


def workspace() -> int | None:
    """Return the limit on a call's memory that the user set, in bytes; None if there is none."""
    return _workspace.get() or _of_variable("PORTCONV_WORKSPACE_LIMIT", MOST_BYTES)


def reproducible_block_bytes(block_bytes: int, limit: int | None) -> int:
    """Return the bytes of a block of a reproducible result, if other blocks have `block_bytes` bytes."""
    size = SIZE_IN_QUARTERS * block_bytes // 4
    return size if limit is None else min(size, limit // SHARE_OF_LIMIT)


def threads() -> int | None:
    """Return the number of threads that the user set; None if there is none."""
    return _threads.get() or _of_variable("PORTCONV_NUM_THREADS", MOST_THREADS)


@cache
def _of_variable(name: str, most: int) -> int | None:
    """Return the positive integer that an environment variable is set to; None if it is not set."""
    text = os.environ.get(name)
    if text is None or not text.strip():
        return None
    try:
        value = int(text)
    except ValueError:
        raise ConvValueError(f"{name}: got {text[:40]!r}, expected a positive integer of at most {most}") from None
    return _positive(name, value, most)


def _positive(name: str, value: int, most: int) -> int:
    """Check that a value is a positive integer that is not too large; return it as an int."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConvTypeError(f"{name}: got {value!r}, expected an int") from None
    if isinstance(value, bool):
        raise ConvTypeError(f"{name}: got {value!r}, expected an int")
    if not 1 <= number <= most:
        # Python does not print an integer of thousands of digits.
        got = f"{number}" if number.bit_length() <= 128 else f"an int of {number.bit_length()} bits"
        raise ConvValueError(f"{name}: got {got}, expected a positive int of at most {most}")
    return number


class _Within(ContextDecorator):
    """Set a variable to a value inside of `with`, and restore it at the end."""

    def __init__(self, variable: ContextVar[int | None], value: int) -> None:
        self.variable, self.value = variable, value
        self.found: list[int | None] = []

    def _recreate_cm(self) -> _Within:  # for each call of a function that it decorates
        return _Within(self.variable, self.value)

    def __enter__(self) -> None:
        found = self.variable.get()
        self.found.append(found)
        try:
            self.variable.set(self.value)
        except BaseException:  # an interrupt: the end of `with` will not come
            self.variable.set(found)
            raise

    def __exit__(self, *_: object) -> None:
        self.variable.set(self.found.pop())
