"""Blocks and halos in integers alone, against every cell and tap counted one by one."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from portconv.frameworks.dask_graph.halos import boxes, inputs, located, outputs, ranges, read, touching
from portconv.spec.geometry import Geometry

MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
PAD = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}
SEEDS = range(400)


def along(size, kernel, stride=1, dilation=1, before=0, after=0, mode="zeros"):
    sides = ((size,), (kernel,), (stride,), (dilation,), (before,), (after,))
    return Geometry(1, 1, 1, 1, *sides, mode)


def drawn(seed, mode=None):
    """A geometry with an output at least, and chunks of the input and of the outputs, some of them of no cell."""
    random_ = random.Random(seed)
    while True:
        mode = mode or random_.choice(MODES)
        size, kernel = random_.randint(1, 24), random_.randint(1, 5)
        stride, dilation = random_.randint(1, 4), random_.randint(1, 4)
        geometry = along(size, kernel, stride, dilation, random_.randint(0, 9), random_.randint(0, 9), mode)
        if geometry.padded[0] >= geometry.extent[0]:
            return geometry, chunks(random_, size), chunks(random_, geometry.out[0])


def chunks(random_, size):
    found = []
    while sum(found) < size:
        found.append(min(random_.choice((0, 1, 1, 2, 3, 7)), size - sum(found)))
    return tuple(found)


def taps(geometry, output):
    """The cells that the taps of an output are on, counted from the first of the input."""
    return [
        output * geometry.stride[0] + k * geometry.dilation[0] - geometry.before[0] for k in range(geometry.kernel[0])
    ]


def sources(geometry):
    """The cell of the input that each one of the padded input repeats; -1 where it is a zero or the constant."""
    cells = np.arange(geometry.size[0])
    sides = (geometry.before[0], geometry.after[0])
    if geometry.mode in ("zeros", "constant"):
        return np.pad(cells, sides, constant_values=-1)
    return np.pad(cells, sides, PAD[geometry.mode]) if geometry.size[0] > 1 else np.zeros(sum(sides) + 1, int)


def tiled(blocks, size):
    """Whether blocks that are not empty lie one after the other."""
    edges = [blocks[0][0], *(end for _, end in blocks)]
    return edges[0] == 0 and edges[-1] == size and all(a < b for a, b in pairwise(edges)) and len(blocks) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_are_all_of_a_result_once(seed):
    geometry, of_x, of_out = drawn(seed)
    assert tiled(outputs(geometry, 0, of_x), geometry.out[0])
    assert tiled(inputs(geometry, 0, of_out), geometry.size[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_reads_from_its_first_tap_to_its_last_and_no_more(seed):
    geometry, of_x, _ = drawn(seed, "constant" if seed % len(MODES) == 0 else None)
    padded = sources(geometry)
    for some in outputs(geometry, 0, of_x):
        found = read(geometry, 0, some)
        read_cells = [cell for run in found.runs for cell in range(*run)]
        assert found.before >= 0
        assert found.after >= 0
        own = along(found.size, *(side[0] for side in (geometry.kernel, geometry.stride, geometry.dilation)))
        assert (found.before + found.size + found.after - own.extent[0]) // own.stride[0] + 1 == some[1] - some[0]
        # What the block's convolution sees under each of its taps is what the whole one does.
        places = read_cells if found.picked is None else [read_cells[place] for place in found.picked]
        seen = [-1] * found.before + places + [-1] * found.after
        used = set()
        for output in range(*some):
            for k, cell in enumerate(taps(geometry, output)):
                source = padded[cell + geometry.before[0]]
                assert seen[(output - some[0]) * own.stride[0] + k * own.dilation[0]] == source
                used.add(int(source))
        used.discard(-1)
        if geometry.mode in ("zeros", "constant"):
            assert read_cells == (list(range(min(used), max(used) + 1)) if used else [])
        elif geometry.dilation[0] == 1 and geometry.stride[0] <= geometry.kernel[0]:  # windows without gaps
            assert read_cells == sorted(used)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_block_of_a_gradient_reads_the_outputs_whose_windows_it_is_in(seed):
    geometry, _, of_out = drawn(seed)
    padded = sources(geometry)
    every = {
        (o, k): padded[cell + geometry.before[0]]
        for o in range(geometry.out[0])
        for k, cell in enumerate(taps(geometry, o))
    }
    for block in inputs(geometry, 0, of_out):
        found = touching(geometry, 0, block)
        wanted = sorted((o, k, cell) for (o, k), cell in every.items() if block[0] <= cell < block[1])
        own = along(
            found.region[1] - found.region[0],
            *(side[0] for side in (geometry.kernel, geometry.stride, geometry.dilation)),
            found.before,
            found.after,
            geometry.mode,
        )
        touched = [o for o, _, _ in wanted]
        if not touched:
            assert found.outputs[0] == found.outputs[1] or geometry.mode != "zeros"
            if found.outputs[0] == found.outputs[1]:
                continue
        if geometry.mode == "zeros":
            assert found.outputs == (min(touched), max(touched) + 1)
            assert block[0] <= found.region[0] < found.region[1] <= block[1]
        assert own.out[0] == found.outputs[1] - found.outputs[0]
        own_padded = sources(own)
        made = []
        for output in range(own.out[0]):
            for k, cell in enumerate(taps(own, output)):
                source = own_padded[cell + own.before[0]]
                if source >= 0 and block[0] <= source + found.region[0] < block[1]:
                    made.append((output + found.outputs[0], k, source + found.region[0]))
        assert sorted(made) == wanted


def test_same_padding_keeps_the_chunks_of_an_input():
    for kernel in range(1, 8):
        for pads in (((kernel - 1) // 2, kernel // 2), (kernel // 2, (kernel - 1) // 2)):
            geometry = along(24, kernel, before=pads[0], after=pads[1])
            assert outputs(geometry, 0, (5, 1, 10, 8)) == ((0, 5), (5, 6), (6, 16), (16, 24))
            assert inputs(geometry, 0, (5, 1, 10, 8)) == ((0, 5), (5, 6), (6, 16), (16, 24))


def test_the_halo_of_a_kernel_of_five_is_two_cells():
    geometry = along(24, 5, before=2, after=2)
    assert [read(geometry, 0, some) for some in ((0, 8), (8, 16), (16, 24))] == [
        (((0, 10),), None, 10, 2, 0),
        (((6, 18),), None, 12, 0, 0),
        (((14, 24),), None, 10, 0, 2),
    ]
    assert [touching(geometry, 0, some).outputs for some in ((0, 8), (8, 16), (16, 24))] == [(0, 10), (6, 18), (14, 24)]


def test_a_stride_takes_as_many_outputs_of_each_chunk_as_start_in_it():
    assert outputs(along(32, 2, stride=2), 0, (8, 8, 16)) == ((0, 4), (4, 8), (8, 16))
    assert inputs(along(32, 2, stride=2), 0, (4, 4, 8)) == ((0, 8), (8, 16), (16, 32))


def test_chunks_smaller_than_the_halo_are_read_from_as_many_as_it_takes():
    geometry = along(12, 7, before=3, after=3)
    reading = read(geometry, 0, (4, 5))
    assert reading.runs == ((1, 8),)
    assert located((1,) * 12, reading.runs) == tuple((cell, 0, 1) for cell in range(1, 8))


def test_padding_that_repeats_the_other_end_reads_both_ends():
    assert read(along(12, 3, before=1, after=1, mode="circular"), 0, (0, 4)).runs == ((0, 5), (11, 12))
    assert read(along(12, 3, before=1, after=1, mode="circular"), 0, (0, 4)).picked == (5, 0, 1, 2, 3, 4)
    assert read(along(12, 3, before=2, after=0, mode="reflect"), 0, (0, 2)).picked == (2, 1, 0, 1)


def test_ends_that_padding_repeats_are_one_block_of_a_gradient():
    assert inputs(along(12, 3, before=2, after=1, mode="reflect"), 0, (1,) * 13)[0] == (0, 3)
    assert inputs(along(12, 3, before=1, after=1, mode="circular"), 0, (6, 6)) == ((0, 12),)
    assert inputs(along(3, 3, before=3, after=3, mode="reflect"), 0, (1,) * 7) == ((0, 3),)


@pytest.mark.parametrize(
    ("out", "most", "count"), [((100,), 30, 4), ((64, 64, 64), 8192, 36), ((3, 5), 100, 1), ((7,), 1, 7)]
)
def test_boxes_are_all_positions_once(out, most, count):
    seen = np.zeros(out, int)
    found = boxes(out, most)
    for box in found:
        part = seen[tuple(slice(*some) for some in box)]
        assert 0 < part.size <= most
        part += 1
    assert (seen == 1).all()
    assert len(found) == count


@pytest.mark.parametrize("seed", range(50))
def test_pieces_are_the_cells_of_the_runs(seed):
    random_ = random.Random(seed)
    size = random_.randint(1, 20)
    own = chunks(random_, size)
    runs = sorted(random_.sample(range(size + 1), 2 * random_.randint(0, size // 2)))
    runs = list(zip(runs[::2], runs[1::2], strict=True))
    cells = np.split(np.arange(size), np.cumsum(own)[:-1])
    got = [int(cell) for number, start, end in located(own, runs) for cell in cells[number][start:end]]
    assert got == [cell for run in runs for cell in range(*run)]
    assert sum(end - start for start, end in ranges(own)) == size
