"""A call within a `workspace_limit`: what it takes, and what a refusal says would be enough."""

from __future__ import annotations

import re
import threading
import tracemalloc

import pytest

import portconv

SLACK = 192 << 10
"""Bytes of Python objects that are no arrays: lists of blocks, indices, and the like."""


def peak(call):
    """The most bytes a call holds beside its results, on one thread that has no workspaces from earlier calls."""
    found = []

    def run():
        tracemalloc.start()
        try:
            results = call()
            kept = sum(a.nbytes for a in results if a is not None)
            found.append(tracemalloc.get_traced_memory()[1] - kept)
        finally:
            tracemalloc.stop()

    with portconv.num_threads(1):
        call()  # what is planned once and kept is no part of a call
        context = __import__("contextvars").copy_context()
        thread = threading.Thread(target=context.run, args=(run,))
        thread.start()
        thread.join()
    return found[0]


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
