"""How much a call may take beside its result: memory, and threads."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

from .errors import ConvTypeError, ConvValueError

ASIDE = 4
"""The part of a limit that blocks of reproducible results may take: one in so many."""
WIDER = 9
"""Blocks of theirs are as many fourths of others': they are made in more steps, of more arrays."""

_workspace: ContextVar[int | None] = ContextVar("portconv.workspace_limit", default=None)
_threads: ContextVar[int | None] = ContextVar("portconv.num_threads", default=None)


def workspace_limit(nbytes: int) -> AbstractContextManager[None]:
    """Limit the memory that a call takes beside its result.

    Without one, the variable ``PORTCONV_WORKSPACE_LIMIT``, read once, is the limit of the process; without that calls
    take 64 MiB on a CPU and 512 MiB on a GPU, reproducible ones four times that, or as much as it takes where nothing
    can do with as little. Blocks become smaller under a smaller limit, and algorithms that want more are not
    considered; the result may differ in its last bits, unless it is reproducible.

    Parameters
    ----------
    nbytes : int
        The most bytes of arrays for each thread of a call: workspaces, copies of arguments in another dtype or with
        their padding filled in, and partial sums. What is a call's own rather than a thread's counts as the first's.

    Returns
    -------
    context manager
        The limit holds inside, in the thread or task that entered it.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `nbytes` is no int, or not positive. A call for which no algorithm can do with as much is a ConvValueError of
        its own.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((4, 8, 64, 64), "float32"), np.ones((8, 8, 3, 3), "float32")
    >>> with portconv.workspace_limit(1 << 20):
    ...     portconv.explain(x, w).workspace_bytes <= 1 << 20
    True
    """
    return _within(_workspace, _positive("nbytes", nbytes))


def num_threads(n: int) -> AbstractContextManager[None]:
    """Set how many threads a call may use.

    Without it, the variable ``PORTCONV_NUM_THREADS``, read once, is the number of the process; without that a library's
    own setting is: on NumPy as many threads as its BLAS may use. On NumPy and PyTorch the BLAS is held to as many for
    the call, and left as it was found; other libraries keep their own settings. No number changes the result.

    Parameters
    ----------
    n : int
        The most threads.

    Returns
    -------
    context manager
        The number holds inside, in the thread or task that entered it.

    Raises
    ------
    ConvTypeError, ConvValueError
        If `n` is no int, or not positive.

    Examples
    --------
    >>> import numpy as np
    >>> with portconv.num_threads(1):
    ...     portconv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    array([[[3., 3., 3.]]])
    """
    return _within(_threads, _positive("n", n))


def within(nbytes: int | None) -> AbstractContextManager[None]:
    """Limit the memory inside to so many bytes, which have been checked; None leaves it as it is."""
    return nullcontext() if nbytes is None else _within(_workspace, nbytes)


def workspace() -> int | None:
    """The limit on a call's memory that was asked for, in bytes, or None."""
    return _workspace.get() or _of_variable("PORTCONV_WORKSPACE_LIMIT")


def aside(block: int, limit: int | None) -> int:
    """The bytes that reproducible results may take to cut and round blocks, where other work is on `block` of them."""
    most = WIDER * block // 4
    return most if limit is None else min(most, limit // ASIDE)


def threads() -> int | None:
    """The number of threads that was asked for, or None."""
    return _threads.get() or _of_variable("PORTCONV_NUM_THREADS")


@cache
def _of_variable(name: str) -> int | None:
    given = os.environ.get(name)
    if given is None or not given.strip():
        return None
    try:
        return _positive(name, int(given))
    except ValueError:
        raise ConvValueError(f"{name}: got {given!r}, expected a positive integer") from None


def _positive(name: str, value: int) -> int:
    try:
        plain = operator.index(value)
    except TypeError:
        raise ConvTypeError(f"{name}: got {value!r}, expected an int") from None
    if isinstance(value, bool):
        raise ConvTypeError(f"{name}: got {value!r}, expected an int")
    if plain < 1:
        raise ConvValueError(f"{name}: got {value!r}, expected a positive int")
    return plain


@contextmanager
def _within(variable: ContextVar[int | None], value: int) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
