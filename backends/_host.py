"""What the host has that no array library of it says: its memory, and a bfloat16."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

from ..errors import BackendError


def bfloat16() -> Any:
    """Return the bfloat16 of `ml_dtypes`, for libraries that have none themselves, such as NumPy."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise BackendError("bfloat16 on the host needs ml_dtypes: pip install 'portconv[bfloat16]'") from error
    return ml_dtypes.bfloat16


@cache
def host_memory() -> int:
    """Return how many bytes of memory this machine has, or the largest possible number if it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize
