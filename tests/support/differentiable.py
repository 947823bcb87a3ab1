"""Calls that frameworks differentiate, and the ways to map their operands."""

from __future__ import annotations

import itertools

import portconv
from portconv.engine import execution

CALLS = {
    "conv": (portconv.conv, (2, 4, 4, 3), (4, 2, 3, 2), {"stride": 2, "padding": 1, "groups": 2}),
    "one sample, channels last": (portconv.conv, (6, 5, 2), (3, 2, 2, 3), {"data_format": "channels_last"}),
    "reflected": (portconv.conv, (2, 2, 6), (3, 2, 3), {"padding": 4, "padding_mode": "reflect"}),
    "constant": (portconv.conv, (2, 2, 5), (3, 2, 3), {"padding": 2, "padding_mode": "constant", "padding_value": 3}),
    "transposed": (portconv.conv_transpose, (2, 4, 3), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
}
"""A function, the shapes of `x` and `w`, and options."""


def shapes_of(name):
    function, x_shape, w_shape, options = CALLS[name]
    filters = w_shape[1] * options.get("groups", 1) if function is portconv.conv_transpose else w_shape[0]
    return x_shape, w_shape, (filters,)


WAYS = [way for way in itertools.product((0, None), repeat=3) if any(axis == 0 for axis in way)]
"""For `x`, `w` and the bias: 0 if it is mapped along its first axis, else None."""


def counted(monkeypatch) -> list[str]:
    """Return a list to which each later operation adds its kind when it is computed, or traced to be compiled."""
    kinds = []
    compute = execution.compute

    def counting(operation, backend, *operands):
        kinds.append(operation.kind)
        return compute(operation, backend, *operands)

    monkeypatch.setattr(execution, "compute", counting)
    return kinds
