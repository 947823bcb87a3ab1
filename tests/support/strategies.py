"""Draw legal calls at random, and run a check on as many of them as the profile says."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
from support.plain_sums import HALVES, Call, common, dtypes_of, kind

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis, which draws the calls, is not installed")
st = hypothesis.strategies

PROPERTIES = 16
EXAMPLES = {"default": (19, 6), "thorough": (1270, 130), "long": (6300, 640)}
"""How often each property is tried on NumPy, and on the slower libraries; PORTCONV_HYPOTHESIS chooses the profile."""
PROFILE = os.environ.get("PORTCONV_HYPOTHESIS", "default")
if PROFILE not in EXAMPLES:
    raise ValueError(f"PORTCONV_HYPOTHESIS: got {PROFILE!r}, expected {' or '.join(EXAMPLES)}")
SAME_AGAIN = PROFILE != "long"
"""Whether the same calls are drawn in each run, so that a test that passed passes again."""

ran: Counter[str] = Counter()
"""How many examples each property has run on NumPy."""


def for_all(target, **drawn):
    """Run the decorated check at once on values drawn from these strategies, as often as the profile says."""
    on_numpy = target.backend.name == "numpy"
    settings = hypothesis.settings(
        max_examples=EXAMPLES[PROFILE][0 if on_numpy else 1],
        derandomize=SAME_AGAIN,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def run(check):
        @functools.wraps(check)
        def counted(**values):
            ran[check.__qualname__.partition(".")[0]] += on_numpy
            check(**values)

        settings(hypothesis.given(**drawn)(counted))()

    return run


whole_numbers = cache(st.integers)
some = cache(lambda *choices: st.sampled_from(choices))
yes = st.booleans()
seeds = st.integers(0, 2**32 - 1)
NAMED_PADDINGS = ("valid", "full", "same", "same_lower")
FAR = (2**31, 2**40, 2**62, 2**63, 2**70)


@st.composite
def dtypes(draw, target, names, kinds=("real", "complex", "integral"), halves=True, mixed=True):
    """Draw a dtype for each operand, often the same, of kinds that a call may mix."""
    known = [name for name in dtypes_of(target) if halves or name not in HALVES]
    of = draw(some(*kinds))
    same_kind = [name for name in known if kind(name) == of]
    first = draw(some(*same_kind))
    if mixed and draw(whole_numbers(0, 2)) == 0:
        others = [name for name in known if kind(name) == "real"] + same_kind if of == "complex" else same_kind
        # The gradient of a real output must be real, so x is complex if any operand is.
        drawn = {name: draw(some(*others)) for name in names} | {"x": first}
        if common(target, *drawn.values()):
            return drawn
    return dict.fromkeys(names, first)


def _as_given(draw, values, kinds=(tuple, list)):
    """Return the values as a user may give them: one number if all are equal, or one each; Python's or NumPy's ints."""
    if len({*values}) == 1 and draw(yes):
        return values[0]
    if max(values) < 2**31 and draw(whole_numbers(0, 3)) == 0:
        values = [np.int64(value) for value in values]
    return draw(some(*kinds))(values)


def _alike(draw, choices, dims):
    """Draw a number for each dimension, often the same."""
    if draw(yes):
        return (draw(choices),) * dims
    return tuple(draw(choices) for _ in range(dims))


def _padding(draw, form, pads):
    """Return the padding in the form in which a user gives it."""
    if form in NAMED_PADDINGS:
        return form
    if form == "pairs":
        return draw(some(tuple, list))(draw(some(tuple, list))(pair) for pair in pads)
    return _as_given(draw, [lo for lo, _ in pads])


def _resolved(name, size, extent, stride):
    """Return the padding of one dimension that a name stands for."""
    if name == "full":
        return extent - 1, extent - 1
    if name == "valid":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return (total // 2, total - total // 2) if name == "same" else (total - total // 2, total // 2)


@st.composite
def calls(draw, target, whole=None, mode=None, groups=(1, 1, 2, 3), far=True, rolls=False, full=False, **about_dtypes):
    """Draw legal calls of `conv`.

    Parameters
    ----------
    whole : bool, optional
        Whether floating point is of whole numbers; drawn where it is None.
    mode : str, optional
        The padding mode; drawn where it is None.
    groups : tuple of int
        What the number of groups is drawn from.
    far : bool
        Whether strides, dilations and paddings may be huge where that is legal.
    rolls : bool
        Whether output and input have the same sizes.
    full : bool
        Whether the padding is "full", and the stride 1.
    **about_dtypes
        As for `dtypes`.
    """
    dims = draw(whole_numbers(1, 3))
    groups, group_in, group_out = draw(some(*groups)), draw(whole_numbers(1, 3)), draw(whole_numbers(1, 3))
    unbatched = draw(whole_numbers(0, 3)) == 0
    batch = 1 if unbatched else draw(some(1, 2, 3, 0))
    windows = _windows(draw, dims, mode, far, rolls, full)
    out, stride, pads = windows.out, windows.stride, windows.pads
    options = {
        "stride": _as_given(draw, stride),
        "padding": _padding(draw, windows.form, pads),
        "dilation": _as_given(draw, windows.dilation),
        "groups": groups,
        "padding_mode": windows.mode,
        "data_format": "channels_last" if (last := draw(yes)) else "channels_first",
    }
    options = _without_defaults(draw, options, {"padding_mode": "zeros"})
    names = ("x", "w", "b", "dout") if draw(yes) else ("x", "w", "dout")
    return Call(
        x=(batch, groups * group_in, *windows.size),
        w=(groups * group_out, group_in, *windows.kernel),
        out=(batch, groups * group_out, *out),
        stride=stride,
        dilation=windows.dilation,
        pads=tuple(pads),
        groups=groups,
        mode=windows.mode,
        channels_last=last,
        unbatched=unbatched,
        transposed=False,
        options=options,
        **_contents(draw, target, names, whole, about_dtypes),
    )


@dataclass
class _Windows:
    """The spatial sizes of a call of `conv`, and the form in which its padding is given."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    mode: str
    form: str
    size: list[int] = field(default_factory=list)
    pads: list[tuple[int, int]] = field(default_factory=list)
    out: list[int] = field(default_factory=list)

    @property
    def extents(self):
        return [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]

    def resolve(self):
        """Compute the padding that a name stands for, enlarge an input smaller than the kernel, and compute `out`."""
        if self.form in NAMED_PADDINGS:
            along = zip(self.size, self.extents, self.stride, strict=True)
            self.pads = [_resolved(self.form, *each) for each in along]
        for dim, (lo, hi) in enumerate(self.pads):
            self.size[dim] += max(0, self.extents[dim] - self.size[dim] - lo - hi)
        along = zip(self.size, self.pads, self.extents, self.stride, strict=True)
        self.out = [(n + lo + hi - e) // s + 1 for n, (lo, hi), e, s in along]


def _windows(draw, dims, mode, far, rolls, full):
    """Draw the spatial sizes of a call of `conv`; see `calls`."""
    tiled = draw(whole_numbers(0, 2)) == 0
    kernel = _alike(draw, some(3, 1) if tiled else whole_numbers(1, 3), dims)
    stride = dilation = (1,) * dims
    if not tiled:
        dilation = _alike(draw, whole_numbers(1, 3), dims)
        if not (rolls or full):
            stride = _alike(draw, some(1, 2, 3, 4, 9), dims)
    mode = mode or draw(some("zeros", "zeros", "reflect", "symmetric", "replicate", "circular"))
    form = draw(some("none", "each", "pairs", "pairs", "valid", "full", "same", "same_lower"))
    form = "pairs" if rolls else "full" if full else form
    distance = draw(some(*FAR)) if far and draw(whole_numbers(0, 9)) == 0 else None
    if distance and not tiled:
        stride = stride if rolls or full else (distance, *stride[1:])
        dilation = tuple(distance if k == 1 else d for k, d in zip(kernel, dilation, strict=True))
    windows = _Windows(kernel, stride, dilation, mode, form)
    smallest = 1 if mode != "zeros" or rolls or form.startswith("same") else 0
    windows.size = [draw(whole_numbers(smallest, (20, 7, 4)[dims - 1])) for _ in range(dims)]
    far_padding = distance if distance == 2**40 and not tiled and mode == "zeros" else None
    windows.pads = _pads(draw, form, windows.extents if rolls else None, dims, far_padding)
    windows.resolve()
    while math.prod(windows.out) > 300 and not full:
        out = windows.out
        windows.stride = tuple(s + (n == max(out)) for s, n in zip(windows.stride, out, strict=True))
        windows.resolve()
    return windows


def _pads(draw, form, extents, dims, far_padding):
    """Draw the cells before and after; with `extents`, those with which output and input have the same sizes."""
    if extents is not None:
        return [(lo, e - 1 - lo) for e in extents for lo in [draw(whole_numbers(0, e - 1))]]
    pads = [(0, 0)] * dims
    if form == "pairs":
        side = whole_numbers(0, (12, 5, 2)[dims - 1])
        pads = [(draw(side), draw(side)) for _ in range(dims)]
        if far_padding is not None:
            pads[0] = (far_padding, pads[0][1])
    elif form == "each":
        pads = [(lo, lo) for lo in _alike(draw, whole_numbers(0, (4, 2, 1)[dims - 1]), dims)]
    return pads


def _without_defaults(draw, options, more):
    """Leave out, in about half of the calls, the options that have their default."""
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **more}
    if not draw(yes):
        return options
    return {name: value for name, value in options.items() if not _is(value, defaults.get(name))}


def _is(value, default):
    return isinstance(value, (int, str)) and value == default


def _contents(draw, target, names, whole, about_dtypes):
    return {
        "dtypes": draw(dtypes(target, names, **about_dtypes)),
        "whole": draw(yes) if whole is None else whole,
        "reversed_axes": draw(whole_numbers(0, 3)) == 0,
        "swapped": draw(whole_numbers(0, 7)) == 0,
        "seed": draw(seeds),
        "spread": draw(some(0, 0, 8, 40)),
        "limit": draw(st.one_of(st.none(), whole_numbers(1, 4096), st.integers(4, 16).map(lambda bits: 1 << bits))),
    }


@st.composite
def transposed_calls(draw, target, whole=None, bare=False, far=True, **about_dtypes):
    """Draw legal calls of `conv_transpose`; with `bare`, without padding and output padding."""
    dims = draw(whole_numbers(1, 3))
    groups, group_in, group_out = draw(some(1, 1, 2, 3)), draw(whole_numbers(1, 3)), draw(whole_numbers(1, 3))
    unbatched = draw(whole_numbers(0, 3)) == 0
    batch = 1 if unbatched else draw(some(1, 2, 3, 0))
    tiled = draw(whole_numbers(0, 3)) == 0
    kernel = _alike(draw, some(3, 1) if tiled else whole_numbers(1, 3), dims)
    stride = dilation = (1,) * dims
    if not tiled:
        stride, dilation = _alike(draw, some(1, 2, 3, 7), dims), _alike(draw, whole_numbers(1, 3), dims)
    size = [draw(whole_numbers(1, (9, 4, 3)[dims - 1])) for _ in range(dims)]
    output_padding = [0] * dims
    if not bare:
        output_padding = [draw(whole_numbers(0, max(each) - 1)) for each in zip(stride, dilation, strict=True)]
    if far and draw(whole_numbers(0, 9)) == 0:
        distance = draw(some(*FAR))
        stride = tuple(distance if n == 1 else s for n, s in zip(size, stride, strict=True))
        dilation = tuple(distance if k == 1 else d for k, d in zip(kernel, dilation, strict=True))
    sides = zip(size, stride, dilation, kernel, output_padding, strict=True)
    uncut = [(n - 1) * s + d * (k - 1) + 1 + extra for n, s, d, k, extra in sides]
    form, pads = _transposed_pads(draw, bare, uncut)
    out = [n - lo - hi for n, (lo, hi) in zip(uncut, pads, strict=True)]
    options = {
        "stride": _as_given(draw, stride),
        "padding": _padding(draw, form, pads),
        "output_padding": _as_given(draw, output_padding),
        "dilation": _as_given(draw, dilation),
        "groups": groups,
        "data_format": "channels_last" if (last := draw(yes)) else "channels_first",
    }
    options = _without_defaults(draw, options, {"output_padding": 0})
    names = ("x", "w", "b", "dout") if draw(yes) else ("x", "w", "dout")
    return Call(
        x=(batch, groups * group_in, *size),
        w=(groups * group_in, group_out, *kernel),
        out=(batch, groups * group_out, *out),
        stride=stride,
        dilation=dilation,
        pads=tuple(pads),
        groups=groups,
        mode="zeros",
        channels_last=last,
        unbatched=unbatched,
        transposed=True,
        options=options,
        **_contents(draw, target, names, whole, about_dtypes),
    )


def _transposed_pads(draw, bare, uncut):
    """Draw the form and the cells that the padding cuts off an output of these sizes."""
    form = "none" if bare else draw(some("none", "each", "pairs", "pairs"))
    if form == "pairs":
        pads = [
            (lo, draw(whole_numbers(0, min(4, n - 1 - lo))))
            for n in uncut
            for lo in [draw(whole_numbers(0, min(4, n - 1)))]
        ]
    elif form == "each":
        pads = [(lo, lo) for n in uncut for lo in [draw(whole_numbers(0, min(3, (n - 1) // 2)))]]
    else:
        pads = [(0, 0)] * len(uncut)
    return form, pads
