"""A call within a `workspace_limit`, which takes at its word what a refusal says would be enough."""

from __future__ import annotations

import re

import pytest

import portconv


def within(limit, compute, refusals=1):
    """Return what `compute` returns within a limit of so many bytes, or within what its refusals name.

    Each refusal must name more than the limit that it refuses, and there are at most so many.
    """
    if limit is None:
        return compute()
    for _ in range(refusals + 1):
        try:
            with portconv.workspace_limit(limit):
                return compute()
        except portconv.ConvValueError as error:
            named = re.search(r"expected .*at least (\d+)", str(error))
            if named is None or int(named[1]) <= limit:
                pytest.fail(f"beyond a limit of {limit} bytes: {error}")
            limit = int(named[1])
    return pytest.fail(f"what refusals name is not enough, up to {limit} bytes")
