"""Test the parts of `portconv bench`: layers, exact results and bounds, peers, turns, memory, and figures."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import oracle

from portconv import backends
from portconv.benchmark import (
    HELD_OUT,
    PEERS,
    ZOO,
    Layer,
    NotMeasured,
    Peer,
    Report,
    Row,
    measure,
    measurement,
    medians,
    surroundings,
)
from portconv.benchmark.measurement import ENOUGH, LONG, LOOK, PATIENCE, SETTLE, TURN
from portconv.benchmark.memory import peak_of_portconv, peak_of_process
from portconv.benchmark.peers import Candidate, portconv_itself
from portconv.benchmark.problem import EPS, PASSES, Errors, Problem
from portconv.benchmark.report import BEST, best, ratios, speedup
from portconv.benchmark.zoo import BATCH, KINDS, growth_pairs, named

NUMPY = backends.get("numpy")
KNOWN = {peer.name: peer for peer in PEERS}

TINY = (
    Layer("1d", (2, 3, 20), (4, 3, 3), (1,), (4,), (4,), 1, "dense"),
    Layer("strided", (2, 4, 9, 8), (6, 2, 3, 2), (2, 1), (1, 0), (1, 2), 2, "dense"),
    Layer("3x3", (2, 4, 6, 6), (5, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1, "dense"),
    Layer("depthwise", (1, 3, 7, 7), (3, 1, 3, 3), (1, 1), (1, 1), (1, 1), 3, "depthwise"),
    Layer("pointwise", (3, 4, 5, 5), (2, 4, 1, 1), (1, 1), (0, 0), (1, 1), 1, "pointwise"),
    Layer("3d", (1, 2, 4, 5, 6), (3, 2, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, "dense"),
)
tiny = pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)


def loops_of(layer: Layer) -> oracle.Problem:
    pads = tuple((pad, pad) for pad in layer.padding)
    return oracle.Problem(layer.x_shape, layer.w_shape, layer.stride, pads, layer.dilation, layer.groups)


def truth(layer: Layer) -> dict[str, tuple[np.ndarray, ...]]:
    """Return the results of each pass, from the oracle's loops in float64."""
    results = loops_of(layer).all(*(array.astype("float64") for array in Problem(layer).arrays))
    return {"forward": (results["out"],), "backward": (results["dx"], results["dw"], results["db"])}


# The zoo


def test_the_zoo_has_layers_of_all_kinds_and_each_name_once() -> None:
    names = [layer.name for layer in ZOO + HELD_OUT]
    assert len(set(names)) == len(names) >= 25
    assert {layer.kind for layer in ZOO} == set(KINDS)
    assert {len(layer.kernel) for layer in ZOO} == {1, 2, 3}
    assert {name.split()[0] for name in names} >= {"resnet50", "vgg16", "mobilenetv2", "convnext", "replknet", "cs231n"}


@pytest.mark.parametrize("layer", ZOO + HELD_OUT, ids=lambda layer: layer.name)
def test_a_name_says_what_the_layer_is(layer: Layer) -> None:
    _, kernel, channels, *rest = layer.name.split()
    assert tuple(map(int, kernel.removeprefix("dw").split("x"))) == layer.kernel
    assert kernel.startswith("dw") == (layer.groups == layer.x_shape[1] > 1)
    both, size = channels.split("@")
    assert {int(n) for n in both.split("-")} == {layer.x_shape[1], layer.w_shape[0]}
    assert {int(n) for n in size.split("x")} == set(layer.x_shape[2:])
    named_sizes = {word[0]: int(word[1:]) for word in rest}
    sizes = (*layer.stride[:1], *layer.dilation[:1], layer.x_shape[0], layer.groups)
    groups = layer.groups if kernel.startswith("dw") else 1
    defaults = {"s": 1, "d": 1, "b": BATCH, "g": groups}
    assert tuple(named_sizes.get(letter, default) for letter, default in defaults.items()) == sizes
    assert layer.w_shape[1] * layer.groups == layer.x_shape[1]


def test_known_shapes() -> None:
    layers = {layer.name: layer for layer in ZOO}
    stem = layers["resnet50 7x7 3-64@224 s2"]
    assert (stem.x_shape, stem.w_shape, stem.out_shape) == ((16, 3, 224, 224), (64, 3, 7, 7), (16, 64, 112, 112))
    course = layers["cs231n 3x3 3-25@31 s2 b100"]
    assert (course.x_shape, course.w_shape, course.out_shape) == ((100, 3, 31, 31), (25, 3, 3, 3), (100, 25, 16, 16))
    assert layers["replknet dw31x31 128@56 b4"].out_shape == (4, 128, 56, 56)
    assert layers["wavenet 2 64@16000 d512"].out_shape == (16, 64, 16000)


def test_a_layer_is_found_by_its_name_or_else_by_a_part() -> None:
    assert [layer.name for layer in named("resnet50 3x3 64@56")] == ["resnet50 3x3 64@56"]
    assert [layer.name for layer in named("3x3 64@56")] == ["resnet50 3x3 64@56", "resnet50 3x3 64@56 b1"]
    assert named("alexnet") == ()


def test_kernels_of_15_and_31_are_paired() -> None:
    pairs = [(a.name, b.name) for a, b in growth_pairs(ZOO)]
    assert pairs == [("replknet dw15x15 128@56 b4", "replknet dw31x31 128@56 b4")]


# Exact results and bounds


@tiny
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("most", [0, math.inf], ids=["gemm", "direct"])
def test_exact_results_are_those_of_the_loops(
    layer: Layer, name: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portconv.benchmark.problem.MOST_CELLS", most)
    for exact, value in zip(Problem(layer).exact[name], truth(layer)[name], strict=True):
        np.testing.assert_allclose(exact.value, value, rtol=0, atol=1e-13 * np.max(np.abs(value)))


@tiny
def test_bounds_are_no_tighter_than_those_of_the_loops(layer: Layer) -> None:
    problem, loops = Problem(layer), loops_of(layer)
    operands = [array.astype("float64") for array in problem.arrays]
    actual = dict(zip(("out", "dx", "dw", "db"), sum(problem.exact.values(), ()), strict=True))
    for algorithm in ("direct", "winograd") if loops.tiled else ("direct",):
        for quantity, bound in loops.bounds(*operands, "float32", algorithm).items():
            assert actual[quantity].reach >= np.max(bound) * (1 - 1e-6)


@tiny
@pytest.mark.parametrize("name", PASSES)
def test_errors_are_in_epsilons_of_the_largest_magnitude(layer: Layer, name: str) -> None:
    problem = Problem(layer)
    values = truth(layer)[name]
    assert problem.errors(name, values).epsilons < 1e-5
    for i, value in enumerate(values):
        changed = value.copy()
        changed.flat[-1] += 40 * EPS * np.max(np.abs(value))
        actual = problem.errors(name, (*values[:i], changed, *values[i + 1 :]))
        assert actual.epsilons == pytest.approx(40, rel=1e-4)


@tiny
@pytest.mark.parametrize("name", PASSES)
def test_what_is_wrong_is_out_of_bounds(layer: Layer, name: str) -> None:
    problem = Problem(layer)
    values = truth(layer)[name]
    assert problem.errors(name, values).held
    for i, value in enumerate(values):
        for wrong in (value[::-1], value * 1.01, np.full_like(value, np.nan), value[..., :-1], value + np.inf):
            if len(value) == 1 and np.array_equal(wrong, value):
                continue
            assert not problem.errors(name, (*values[:i], wrong, *values[i + 1 :])).held


# Peers


@tiny
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name != "product"], ids=lambda peer: peer.name)
def test_a_peer_computes_the_convolution(peer: Peer, layer: Layer) -> None:
    if reason := peer.unavailable(NUMPY):
        pytest.skip(reason)
    problem = Problem(layer)
    if peer.skips(problem):
        assert (peer.name, len(layer.kernel)) == ("torch-last", 1)
        return
    candidate = peer.prepare(problem, NUMPY, threads=1)
    assert tuple(candidate.runs) == (PASSES[:1] if peer.name == "onnx" else PASSES)
    for name, run in candidate.runs.items():
        errors = problem.errors(name, tuple(map(candidate.to_host, run())))
        assert errors.held
        assert 0 < errors.epsilons < 50


def test_torch_last_holds_channels_last() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    (out,) = KNOWN["torch-last"].prepare(Problem(TINY[2]), NUMPY, threads=1).runs["forward"]()
    assert out.is_contiguous(memory_format=torch.channels_last)
    (out,) = KNOWN["torch"].prepare(Problem(TINY[2]), NUMPY, threads=1).runs["forward"]()
    assert out.is_contiguous()


def test_torch_gets_as_many_threads_as_portconv() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    before = torch.get_num_threads()
    try:
        KNOWN["torch"].prepare(Problem(TINY[2]), NUMPY, threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_products_are_of_as_many_operations() -> None:
    layer = TINY[0]
    product = KNOWN["product"].prepare(Problem(layer), NUMPY, threads=1)
    (first, second) = product.runs["forward"]()
    assert first.shape == second.shape == (4, layer.out_shape[2])
    assert np.all(first == 9)
    assert len(product.runs["backward"]()) == 4
    assert not product.compared
    assert KNOWN["product"].skips(Problem(TINY[1]))


@pytest.mark.parametrize(
    ("name", "module"), [("torch", "torch"), ("torch-last", "torch"), ("onnx", "onnxruntime"), ("jax", "jax")]
)
def test_a_missing_peer_says_how_to_install_it(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    reason = KNOWN[name].unavailable(NUMPY)
    assert reason == f"{module} is not installed: {KNOWN[name].install}"


def test_a_broken_peer_says_what_it_raised(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise OSError('libcudart\\n is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    peer = Peer("broken", "Broken", ("broken_peer",))
    assert peer.unavailable(NUMPY) == "broken_peer cannot be imported: OSError: libcudart is missing"


# Turns


class Clock:
    """Time that passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.computed = 0.0
        self.spinning = 0.0
        """The seconds that other threads still compute."""
        self.ran: list[str] = []

    def process_time(self) -> float:
        return self.computed

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.ran.append("sleep")
        self.now += seconds
        self.computed += min(seconds, self.spinning)
        self.spinning -= min(seconds, self.spinning)

    def candidate(self, name: str, *seconds: float) -> Callable[[], None]:
        """Return a call that takes each of these times in turn, and then always the last one."""
        remaining = list(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(measurement, "time", fake)
    return fake


def test_turns_are_interleaved_and_settle_first(clock: Clock) -> None:
    quarter = LONG / 2  # longer than SETTLE, so that each turn is two calls
    actual = medians({"a": clock.candidate("a", quarter), "b": clock.candidate("b", quarter / 2)}, 3)
    assert quarter / 2 > SETTLE
    assert clock.ran == ["sleep", "a", "a", "sleep", "b", "b"] * 3
    assert actual == pytest.approx({"a": quarter, "b": quarter / 2})


def test_short_calls_are_repeated(clock: Clock) -> None:
    actual = medians({"a": clock.candidate("a", 2**-10)}, 2)
    assert actual == {"a": 2**-10}
    assert clock.ran.count("a") == 2 * (math.ceil(SETTLE * 2**10) + math.ceil(TURN * 2**10))


def test_a_turn_begins_when_no_other_thread_spins(clock: Clock) -> None:
    for spinning, looks in ((0.0, 1), (4.5 * LOOK, 6), (math.inf, round(PATIENCE / LOOK))):
        clock.spinning, clock.ran = spinning, []
        medians({"a": clock.candidate("a", 0.25)}, 1)
        assert clock.ran.count("sleep") == pytest.approx(looks, abs=1)
        assert clock.ran[-2:] == ["a", "a"]


def test_the_median_turn_counts(clock: Clock) -> None:
    turns = (0.25, 0.5, 0.25, 0.375, 0.25, 0.25)  # every second call is untimed
    assert medians({"a": clock.candidate("a", *turns)}, 3) == {"a": 0.375}


def test_a_long_call_does_not_settle_and_has_fewer_turns(clock: Clock) -> None:
    actual = medians({"a": clock.candidate("a", 2.0), "b": clock.candidate("b", 0.25)}, 9, slow={"a"})
    assert actual == {"a": 2.0, "b": 0.25}
    assert clock.ran.count("a") == math.floor(ENOUGH / 2) + 1
    assert clock.ran[:5] == ["sleep", "a", "sleep", "b", "b"]
    assert clock.ran.count("b") == 18


# Memory


def test_the_memory_of_a_run_is_its_peak_beyond_the_result() -> None:
    def run() -> tuple[np.ndarray, ...]:
        passing = np.ones(8 << 20)
        return (passing[: 1 << 20] * 2,)

    if peak_of_process(run) is None:
        pytest.skip("this system does not tell a process the peak of its memory")
    assert peak_of_process(run) == pytest.approx(64 << 20, rel=0.1)


def test_the_memory_of_portconv_counts_its_workspaces() -> None:
    layer = Layer("", (1, 16, 32, 32), (16, 16, 5, 5), (1, 1), (2, 2), (1, 1), 1, "dense")
    columns = 16 * 25 * 32 * 32 * 4
    taken = {name: peak_of_portconv(layer, name, "gemm") for name in PASSES}
    assert 0.1 * columns < taken["forward"] < 4 * columns
    assert 0.1 * columns < taken["backward"] < 8 * columns
    assert peak_of_portconv(layer, "forward", "winograd") is None  # it cannot compute this layer


# Layers measured


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each turn one call."""
    monkeypatch.setattr(measurement, "SETTLE", 0.0)
    monkeypatch.setattr(measurement, "TURN", 0.0)


class Wrong(Peer):
    """A peer that returns twice the output, and has no backward pass."""

    def prepare(self, problem: Problem, backend: Any, threads: int) -> Candidate:
        forward = portconv_itself("", problem, backend, "direct").runs["forward"]
        return Candidate(self.name, {"forward": lambda: (2 * forward()[0],)})


class Raising(Peer):
    """A peer that raises, when it is prepared or when it runs."""

    def prepare(self, problem: Problem, backend: Any, threads: int) -> Candidate:
        def run() -> Any:
            raise NotImplementedError("no such\nstride")

        if self.title == "early":
            run()
        return Candidate(self.name, dict.fromkeys(PASSES, run))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("layer", TINY[:2], ids=lambda layer: layer.name)
def test_both_passes_of_a_layer_are_measured(layer: Layer) -> None:
    rows = list(measure(layer, NUMPY, [KNOWN["direct"], KNOWN["product"]], "auto", 1))
    assert [(row.layer, row.name) for row in rows] == [(layer, name) for name in PASSES]
    for row in rows:
        product = set() if layer.groups > 1 else {"product"}
        assert set(row.times) == set(row.memory) == {"portconv", "direct"} | product
        assert set(row.errors) == {"portconv", "direct"}
        assert all(errors.held for errors in row.errors.values())
        assert all(seconds > 0 for seconds in row.times.values())
        assert row.memory["portconv"] is not None


@pytest.mark.usefixtures("quick")
def test_a_peer_that_is_wrong_or_raises_is_told_and_ends_nothing() -> None:
    peers = [Wrong("wrong", "Wrong"), Raising("early", "early"), Raising("late", "late")]
    report = Report()
    for measured in measure(TINY[0], NUMPY, peers, "gemm", 1):
        report.take(measured)
    assert [str(entry) for entry in report.not_measured] == [
        "early on 1d: NotImplementedError: no such stride",
        "late on 1d, forward: NotImplementedError: no such stride",
        "late on 1d, backward: NotImplementedError: no such stride",
    ]
    assert [(row.name, who) for row, who in report.out_of_bounds] == [("forward", "wrong")]
    assert [set(row.times) for row in report.rows] == [{"portconv", "wrong"}, {"portconv"}]
    assert report.faults == []
    assert not report.held


@pytest.mark.usefixtures("quick")
def test_a_layer_that_an_algorithm_does_not_serve_is_left_out() -> None:
    (entry,) = measure(TINY[4], NUMPY, [], "winograd", 1)
    assert (entry.layer, entry.who, entry.fault) == ("pointwise", "portconv", False)
    assert entry.reason.startswith("algorithm: got 'winograd'")


# Figures


FINE = Errors(1.5, 0.01)


def row(layer: Layer, name: str = "forward", **times: float) -> Row:
    known = {"torch_last": "torch-last", "same_bits": "same-bits"}
    seconds = {known.get(who, who): time for who, time in times.items()}
    return Row(layer, name, seconds, {who: FINE for who in seconds if who != "product"}, {"portconv": 3 << 20})


def layer(name: str) -> Layer:
    (layer,) = named(name)
    return layer


DENSE, POINTWISE, DEPTHWISE = (
    layer(name) for name in ("resnet50 3x3 64@56", "resnet50 1x1 256-64@56", "mobilenetv2 dw3x3 144@56")
)
SHORT, LONGER = growth_pairs(ZOO)[0]


@pytest.fixture
def report() -> Report:
    return Report(
        [
            row(DENSE, portconv=2.0, torch=4.0, torch_last=1.0, jax=8.0, direct=0.5, product=0.25),
            row(DENSE, "backward", portconv=3.0, torch=24.0, torch_last=6.0),
            row(POINTWISE, portconv=1.0, torch=0.5, onnx=0.25),
            row(DEPTHWISE, portconv=1.0, torch=8.0, onnx=2.0),
            row(SHORT, portconv=1.0, direct=9.0),
            row(LONGER, portconv=1.25, direct=36.0),
        ]
    )


def test_ratios_are_our_time_over_the_peers(report: Report) -> None:
    assert ratios(report.rows[0]) == {"torch": 0.5, "torch-last": 2.0, "jax": 0.25, "direct": 4.0, "product": 8.0}


def test_the_best_peer_is_the_fastest_library(report: Report) -> None:
    assert [best(row) for row in report.rows] == ["torch-last", "torch-last", "onnx", "onnx", None, None]


def test_speedups_are_geometric_means(report: Report) -> None:
    # Over PyTorch 2, 8, 1/2 and 8: their product is 64. Over the best 1/2, 2, 1/4 and 2: it is 1/2.
    assert speedup(report.rows, "torch") == pytest.approx(64 ** (1 / 4))
    assert speedup(report.rows, BEST) == pytest.approx(0.5 ** (1 / 4))
    assert speedup(report.rows, "jax") == pytest.approx(4)
    assert speedup([], "torch") is None


def test_the_summary_has_each_pass_and_each_kind(report: Report) -> None:
    summary = report.summary()
    assert summary["speedup"]["backward"] == {"over_torch": pytest.approx(8), "over_best": pytest.approx(2)}
    assert summary["speedup"]["forward"]["over_torch"] == pytest.approx(2)
    kinds = summary["speedup_by_kind"]
    assert list(kinds) == ["dense", "pointwise", "depthwise", "large"]
    assert kinds["dense"]["over_torch"] == pytest.approx(2)  # 2, 8 and the pointwise layer's 1/2
    assert kinds["pointwise"] == {"over_torch": pytest.approx(0.5), "over_best": pytest.approx(0.25)}
    assert kinds["large"] == {"over_torch": None, "over_best": None}
    assert summary["worst_dense"] == {
        "layer": POINTWISE.name,
        "pass": "forward",
        "peer": "onnx",
        "ratio": pytest.approx(4),
    }
    assert summary["kernel_31_over_15"] == [
        {"short": SHORT.name, "long": LONGER.name, "pass": "forward", "ratio": pytest.approx(1.25)}
    ]


def test_the_summary_has_what_reproducible_costs_on_dense_layers(report: Report) -> None:
    assert report.summary()["reproducible_over_standard"] is None
    rows = [
        row(DENSE, portconv=1.0, same_bits=4.0),
        row(DENSE, "backward", portconv=1.0, same_bits=6.0),
        row(POINTWISE, portconv=0.5, same_bits=8.0),
        row(DEPTHWISE, portconv=1.0, same_bits=99.0),
    ]
    assert Report(rows).summary()["reproducible_over_standard"] == {
        "forward": pytest.approx(8),  # 4 and 16
        "backward": pytest.approx(6),
        "worst": {"layer": POINTWISE.name, "pass": "forward", "ratio": pytest.approx(16)},
    }


def test_reproducible_is_timed_and_held_to_the_bounds() -> None:
    (actual,) = (
        row
        for row in measure(layer("small 3x3 3-8@8 b1"), NUMPY, [KNOWN["same-bits"]], "auto", 1)
        if row.name == "forward"
    )
    assert actual.times["same-bits"] > 0
    # Rounded once, so by half an epsilon of the largest element at most, and by what quantising changes.
    assert actual.errors["same-bits"].epsilons < 0.51


def test_a_summary_of_nothing_has_no_figures() -> None:
    summary = Report().summary()
    assert summary["speedup"]["all"] == {"over_torch": None, "over_best": None}
    assert (summary["worst_dense"], summary["kernel_31_over_15"], summary["speedup_by_kind"]) == (None, [], {})
    assert not Report().held
    assert Report().verdict() == "nothing was measured"


def test_the_verdict(report: Report) -> None:
    assert report.held
    assert report.verdict() == "6 passes of 5 layers: all results within bounds"
    report.take(NotMeasured("a layer", "jax", "has no such thing"))
    assert report.held
    report.take(NotMeasured("a layer", "portconv", "raised", fault=True))
    assert not report.held
    report.rows[0] = replace(report.rows[0], errors={"torch": Errors(1e6, 1.5), "jax": Errors(math.nan, math.nan)})
    assert report.verdict() == "6 passes of 5 layers: 2 results out of bounds, 1 failed"


def test_json_is_of_plain_types_and_has_no_times(report: Report) -> None:
    report.missing["jax"] = "jax is not installed"
    report.rows[0] = replace(report.rows[0], errors={"torch": Errors(math.inf, math.nan)})
    slower = Report([replace(row, times={w: 3 * t for w, t in row.times.items()}) for row in report.rows])
    slower.missing = report.missing
    text = json.dumps(report.as_json(), allow_nan=False)
    # Nothing in it depends on how fast the machine is, but the last digit of what is rounded.
    assert rounded(json.loads(text)) == rounded(slower.as_json())
    first = json.loads(text)["layers"][0]
    assert first["layer"]["name"] == DENSE.name
    assert first["ratios"]["torch"] == 0.5
    assert first["best_peer"] == "torch-last"
    assert first["error_epsilons"] == first["error_over_bound"] == {"torch": None}
    assert (first["held"], first["extra_mib"]) == (False, {"portconv": 3.0})
    peers = {peer["name"]: peer for peer in json.loads(text)["peers"]}
    assert set(peers) == set(KNOWN)
    assert (peers["jax"]["missing"], peers["torch"]["missing"]) == ("jax is not installed", None)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(member) for member in value]
    return round(value, 9) if isinstance(value, float) else value


def test_surroundings_name_what_figures_depend_on() -> None:
    actual = surroundings(NUMPY)
    assert {"portconv", "python", "processor", "numpy", "backend", "threads", "BLAS", "date"} <= set(actual)
    assert actual["numpy"] == np.__version__
    assert all(isinstance(value, str) and value for value in actual.values())
