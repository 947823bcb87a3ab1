"""Test how `fft` cuts a product into tiles and blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.geometries import geometry

from portconv.algorithms import fft_spectra, fft_tiles
from portconv.algorithms.budget import Budget
from portconv.algorithms.choice import known

FFT = known()["fft"]

# Shapes of x and w, padding, dilation and groups.
SHAPES = {
    "audio": ((4, 1, 160_000), (16, 1, 401), 200, 1, 1),
    "signal": ((2, 8, 5000), (4, 8, 9), 0, 4, 1),
    "large kernels": ((4, 96, 56, 56), (96, 1, 31, 31), 15, 1, 96),
    "wide": ((1, 4, 7, 9000), (6, 2, 3, 65), ((0, 1), (64, 0)), 1, 2),
    "volume": ((2, 3, 20, 21, 22), (5, 3, 7, 5, 7), "full", 1, 1),
    "padding alone": ((2, 3, 5), (3, 1, 4), ((3000, 4000),), 1, 3),
    "no samples": ((0, 3, 8, 8), (8, 3, 3, 3), 1, 1, 1),
    "many filters": ((1, 64, 14, 14), (128, 64, 7, 7), 3, 1, 1),
}
BUDGETS = {
    "large blocks": Budget(1 << 20, 4096, 1, 1 << 24),
    "threads": Budget(1 << 18, 4096, 16, 1 << 24),
    "little workspace": Budget(1 << 20, 4096, 4, 1 << 17),
    "small blocks": Budget(1 << 12, 4096, 4, 1 << 24),
}


def unit_stride(x_shape, w_shape, padding, dilation, groups):
    """Return the geometry of a convolution with stride 1."""
    return geometry(x_shape, w_shape, 1, padding, dilation, groups)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("mirrored", [False, True], ids=["forward", "input_grad"])
def test_blocks_cover_each_output_once_and_stay_bounded(shape, budget, mirrored):
    convolution = unit_stride(*shape).mirrored if mirrored else unit_stride(*shape)
    plan, workspace = FFT.plan("forward", convolution, budget)
    points = math.prod(side.points for side in plan.sides)
    group_elements = 2 * points * (convolution.group_in + 2 * convolution.group_out)
    assert [group for held in plan.held for group in range(*held)] == [*range(convolution.groups)]
    # Along each dimension the tiles follow one another, so they cover each output once. Blocks are products of them.
    for side, out in zip(plan.sides, convolution.out, strict=True):
        assert side.tiles[0][0][0] == 0
        assert side.tiles[-1][0][1] == out
        assert all(one[0][1] == other[0][0] for one, other in zip(side.tiles, side.tiles[1:], strict=False))
        assert all(end - start <= side.tile for (start, end), _, _ in side.tiles)
    times_covered = {}
    for held in plan.held:
        for samples, groups, tile in plan.blocks(held):
            assert held[0] <= groups[0] < groups[1] <= held[1]
            count, group_count = samples[1] - samples[0], groups[1] - groups[0]
            assert count * group_count * group_elements <= max(budget.block_elements, group_elements)
            start = tuple(part.start for part in tile.outputs)
            times_covered[start] = times_covered.get(start, 0) + count * group_count
    assert set(times_covered.values()) <= {convolution.batch * convolution.groups}
    assert len(times_covered) == (len(plan.tiles) if convolution.batch else 0)
    # A share of a weight gradient is of one partial sum and some groups; all shares together have all blocks.
    for held in plan.held:
        shares = plan.shares(held)
        assert len({(i, groups) for i, groups, _ in shares}) == len(shares)
        assert {i for i, _, _ in shares} <= set(range(plan.sums))
        assert sorted(b for _, _, blocks in shares for b in map(repr, blocks)) == sorted(map(repr, plan.blocks(held)))
    pieces = plan.filters(convolution.groups)
    covered = np.zeros((convolution.groups, convolution.group_out), int)
    for groups, filters in pieces:
        covered[slice(*groups), slice(*filters)] += 1
    assert np.all(covered == 1)
    # The least workspace is for a block of one sample, group and tile, and the spectra of one group.
    if budget.workspace_elements >= 1 << 24:
        assert workspace <= budget.workspace_elements


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_tiles_are_what_the_bound_takes_them_for(shape, budget):
    for convolution in (unit_stride(*shape), unit_stride(*shape).mirrored):
        plan, _ = FFT.plan("forward", convolution, budget)
        for side, padded, extent in zip(plan.sides, convolution.padded, convolution.extent, strict=True):
            assert side.points <= 1 << padded.bit_length()  # the first power of 2 beyond the padded size
            assert side.points >= side.tile
            assert all(end - start >= extent for (start, end), _, _ in side.tiles[:-1])


def check_side(convolution, dim, elements):
    """Check one dimension of a plan, cell by cell: each tap reads its cell, and no other point falls on it."""
    side = fft_tiles.cut_side(convolution, dim, elements)
    size, before = convolution.size[dim], convolution.before[dim]
    dilation, kernel = convolution.dilation[dim], convolution.kernel[dim]
    taps = np.arange(kernel) * dilation
    outputs = []
    for (start, end), (lo, hi), at in side.tiles:
        outputs += range(start, end)
        assert 0 <= lo <= hi <= size
        assert at >= 0
        assert at + hi - lo <= side.segment <= side.points
        assert end - start <= side.tile <= side.points
        cells, places = np.arange(lo, hi), at + np.arange(hi - lo)
        for output in range(start, end):
            reads = output - before + taps
            # Point t of the transform adds up place t - p for the tap at point p.
            point = (output - start) - (side.offset - taps)
            for cell, place in zip(reads, point, strict=True):
                if 0 <= cell < size:
                    assert lo <= cell < hi
                    assert place == at + cell - lo
            if cells.size:
                meets = (places[:, None] - point[None, :]) % side.points == 0
                assert np.array_equal(meets, cells[:, None] == reads[None, :])
    assert outputs == list(range(convolution.out[dim]))


def test_sides_read_what_each_tap_reads_and_no_other_cell():
    rng = np.random.default_rng(1)
    for _ in range(300):
        size, kernel, dilation = int(rng.integers(0, 30)), int(rng.integers(1, 7)), int(rng.integers(1, 4))
        pads = [int(n) for n in rng.integers(0, rng.choice([1, 5, 2 * size + 3]), 2)]
        extent = dilation * (kernel - 1) + 1
        pads[int(rng.integers(0, 2))] += max(0, extent - size - sum(pads))
        convolution = geometry((1, 1, size), (1, 1, kernel), 1, (tuple(pads),), dilation, 1)
        for elements in (1 << 20, 2 * extent + 6):
            check_side(convolution, 0, elements)
            # The mirrored convolution has negative padding if there is more padding than the kernel's extent.
            if min(convolution.mirrored.size) or min(convolution.mirrored.out):
                check_side(convolution.mirrored, 0, elements)


def test_a_long_side_is_cut_where_one_transform_would_be_too_large():
    convolution = geometry((1, 1, 100_000), (1, 1, 11), 1, 0, 1, 1)
    side = fft_tiles.cut_side(convolution, 0, 500)
    assert side.points <= 500
    assert len(side.tiles) == -(-convolution.out[0] // side.tile)
    check_side(geometry((1, 1, 1000), (1, 1, 11), 1, 0, 1, 1), 0, 64)


def test_runs_give_taps_their_points_modulo_the_points_of_a_transform():
    for points in (1, 2, 5, 12):
        for step in (-7, -3, -1, 1, 2, 5):
            # There are no more taps than points, because the points are at least a kernel's extent.
            for count in range(1, 1 + max(1, -(-points // abs(step)))):
                for first in range(-points, points):
                    points_of_taps = {}
                    for (start, end), slice_of_points in fft_spectra.runs_of(first, step, count, points):
                        inside = [*range(points)[slice_of_points]]
                        assert len(inside) == end - start
                        points_of_taps |= dict(
                            zip(range(start, end), inside if step > 0 else inside[::-1], strict=True)
                        )
                    assert points_of_taps == {tap: (first + tap * step) % points for tap in range(count)}


def test_points_have_only_small_primes():
    for least in (*range(1, 300), 2**20 - 1, 10**7 + 1, 2**24 + 1, 2**40 - 1):
        points = rest = fft_tiles.smooth_size(least)
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert least <= points <= 1 << (least - 1).bit_length()
