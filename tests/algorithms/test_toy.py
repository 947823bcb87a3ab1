"""Test that an algorithm is one class: the one that is defined here is known everywhere, with no other change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.oracle import Problem

import portconv
from portconv import backends
from portconv.algorithms.algorithm import Algorithm, register, withdraw
from portconv.algorithms.budget import Work
from portconv.algorithms.choice import known
from portconv.benchmark import zoo
from portconv.benchmark.costs import timings

KNOWN = portconv.algorithms()


class Toy(Algorithm):
    """A sum over taps of shifted inputs, for stride 1 and real numbers. It is slow, but counts no work."""

    name = "toy"

    def objection(self, geometry, dtype, backend):
        if dtype.kind != "real floating":
            return "real floating point"
        return None if geometry.dense else "stride 1"

    def work(self, kind, geometry, budget, backend):
        return Work(0, 0, 0, 0, 0, {"taps": 1})

    def forward(self, geometry, backend, budget, x, w, b):
        xp = backend.xp
        w = xp.reshape(w, (geometry.groups, geometry.group_out, geometry.group_in, geometry.taps))
        out = backend.zeros((geometry.batch, geometry.groups, geometry.group_out, geometry.positions), like=x)
        for tap, cells_of_tap in enumerate(self._cells_of_taps(geometry, backend, x)):
            out = out + xp.matmul(w[None, :, :, :, tap], cells_of_tap)
        out = xp.reshape(out, geometry.out_shape)
        return out if b is None else out + xp.reshape(b, (-1, *(1,) * geometry.dims))

    def weight_grad(self, geometry, backend, budget, dout, x):
        xp = backend.xp
        dout = xp.reshape(dout, (geometry.batch, geometry.groups, geometry.group_out, geometry.positions))
        taps = [
            xp.sum(xp.matmul(dout, xp.permute_dims(cells_of_tap, (0, 1, 3, 2))), axis=0)
            for cells_of_tap in self._cells_of_taps(geometry, backend, x)
        ]
        return xp.reshape(xp.stack(taps, axis=-1), geometry.w_shape)

    def _cells_of_taps(self, geometry, backend, x):
        """Yield the cells that each tap reads: (N, G, C, P)."""
        sizes = [o + e - 1 for o, e in zip(geometry.out, geometry.extent, strict=True)]
        around = zip(geometry.before, geometry.size, sizes, strict=True)
        inside = [(max(0, lo), max(0, -lo), max(0, min(n, size - lo) - max(0, -lo))) for lo, n, size in around]
        padded = backend.zeros((*x.shape[:2], *sizes), like=x)
        cells = x[(..., *(slice(start, start + n) for _, start, n in inside))]
        padded = backend.write(padded, (..., *(slice(at, at + n) for at, _, n in inside)), cells)
        shape = (geometry.batch, geometry.groups, geometry.group_in, geometry.positions)
        for tap in itertools.product(*map(range, geometry.kernel)):
            places = zip(tap, geometry.dilation, geometry.out, strict=True)
            cells_of_tap = padded[(..., *(slice(t * d, t * d + n) for t, d, n in places))]
            yield backend.xp.reshape(cells_of_tap, shape)


TOY = known()["toy"]
withdraw("toy")


@pytest.fixture
def toy():
    register(TOY)
    yield
    withdraw("toy")


PROBLEM = Problem((2, 4, 7, 6), (6, 2, 3, 2), (1, 1), ((1, 2), (0, 3)), (1, 2), 2)
OPTIONS = {"padding": ((1, 2), (0, 3)), "dilation": (1, 2), "groups": 2}


@pytest.mark.usefixtures("toy")
def test_what_is_defined_is_known_and_what_is_withdrawn_is_not():
    before, after = KNOWN[:-2], KNOWN[-2:]
    assert portconv.algorithms() == (*before, "toy", *after)
    assert (before[-1], after) == ("gemm", ("tap_loop", "direct"))
    withdraw("toy")
    assert portconv.algorithms() == KNOWN
    with pytest.raises(portconv.ConvValueError, match="algorithm: got 'toy'"):
        portconv.conv(np.ones((1, 1, 5)), np.ones((1, 1, 3)), algorithm="toy")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("algorithm", ["auto", "toy"])
def test_it_serves_all_three_products(target, algorithm):
    x, w, b, dout = (np.rint(4 * array).astype("float32") for array in PROBLEM.operands("float32"))
    arrays = [target.array(array) for array in (x, w, b)]
    explained = portconv.explain(*arrays[:2], algorithm=algorithm, **OPTIONS)
    assert (explained.algorithm, explained.block) == ("toy", {"taps": 1})
    assert [one.name for one in explained.candidates if one.why_not is None] != []
    out, cache = portconv.conv_forward(*arrays, algorithm=algorithm, **OPTIONS)
    results = (out, *portconv.conv_backward(target.array(dout), cache))
    # Sums of small whole numbers are exact.
    for (name, truth), result in zip(PROBLEM.all(x, w, b, dout).items(), results, strict=True):
        assert np.array_equal(target.numpy(result), truth), name


@pytest.mark.usefixtures("toy")
def test_a_choice_is_made_anew_and_a_gradient_of_infinite_filters_is_another_s():
    x, w = np.ones((1, 2, 6), "float32"), np.ones((3, 2, 3), "float32")
    w[0, 0, 0] = np.inf
    grad = portconv.conv_input_grad(np.ones((1, 3, 4), "float32"), w, x.shape)
    withdraw("toy")
    expected = portconv.conv_input_grad(np.ones((1, 3, 4), "float32"), w, x.shape)
    assert portconv.explain(x, w).algorithm != "toy"
    assert np.array_equal(grad, expected, equal_nan=True)


@pytest.mark.usefixtures("toy")
def test_its_errors_are_bounded():
    x, w, b, _ = PROBLEM.operands("float32")
    out = portconv.conv(x, w, b, **OPTIONS)
    bound = portconv.error_bound(x, w, b, **OPTIONS)
    assert np.array_equal(bound, portconv.error_bound(x, w, b, algorithm="direct", **OPTIONS))
    wide = [array.astype("float64") for array in (x, w, b)]
    assert np.all(np.abs(out - PROBLEM.forward(*wide)) <= bound)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["verify", "bench"])
def test_the_command_takes_its_name(name, monkeypatch):
    testing = pytest.importorskip("click.testing")
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from portconv.command.group import portconv as command

    monkeypatch.setenv("COLUMNS", "200")
    options = {
        "verify": ("--backend", "numpy", "--dtype", "float32"),
        "bench": ("--backend", "numpy", "--repeats", "1", "--peer", "direct", "--layer", "small 3x3 3-8@8 b1"),
    }
    done = testing.CliRunner().invoke(command, (name, *options[name], "--algorithm", "toy"), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "toy" in done.output or name == "bench"
    refused = testing.CliRunner().invoke(command, (name, *options[name], "--algorithm", "toys"))
    assert refused.exit_code == 2
    assert "toy" in refused.output


@pytest.mark.usefixtures("toy")
def test_its_time_is_measured_to_calibrate():
    (layer,) = zoo.named("small 3x3 3-8@8 b1")
    assert {timing.algorithm for timing in timings(layer, backends.get("numpy"), "cpu")} == {"toy"}


def test_an_explanation_is_printed_as_a_table():
    x, w = np.ones((2, 4, 12, 12), "float32"), np.ones((4, 4, 3, 3), "float32")
    found = portconv.explain(x, w, padding=1, stride=2)
    lines = str(found).splitlines()
    assert lines[0].startswith(f"{found.algorithm}, blocks of ")
    assert lines[1] == f"at most {found.workspace_bytes} bytes of workspace for each thread"
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert list(rows) == [one.name for one in found.candidates]
    assert rows[found.algorithm] == ["1.00", "taken"]
    assert " ".join(rows["fft"]) == "serves stride 1"
