"""Test `portconv run`: what it reads, what it computes, what it writes and what it refuses."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portconv
from portconv import backends

pytest.importorskip("click", reason="the command's libraries are not installed: pip install 'portconv[cli]'")
pytest.importorskip("rich", reason="the command's libraries are not installed: pip install 'portconv[cli]'")
pytest.importorskip("matplotlib", reason="the command's libraries are not installed: pip install 'portconv[cli]'")
pytest.importorskip("PIL", reason="the command's libraries are not installed: pip install 'portconv[cli]'")

from click.testing import CliRunner
from PIL import Image

from portconv.command import filters, photograph, picture
from portconv.command.filters import Bank
from portconv.command.photograph import Photograph
from portconv.command.run import command, convolve

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (9, 14, 3), np.uint8)


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Draw few pixels, for speed, and write all files into the test's folder."""
    monkeypatch.setattr(picture, "DPI", 50)
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def refusal(*arguments: object) -> str:
    """Return the only line that a refused call prints."""
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    return result.output


def saved(image: Image.Image | np.ndarray, name: str = "photo.png", **options: Any) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(name, **options)
    return Path(name)


def pixels(path: Path, longest: int = 0) -> np.ndarray:
    return photograph.read(path, longest).pixels


def maps_of(values: np.ndarray, bank: Bank, gradient: bool = False) -> Any:
    sample = Photograph(Path("made.png"), values.shape[:0:-1], values.astype(np.float32))
    return convolve(backends.get("numpy"), sample, bank, gradient)


# What is computed


def test_edges_of_a_vertical_step() -> None:
    step = np.zeros((1, 10, 16))
    step[:, :, 8:] = 1
    bank = filters.bank("edges")
    inner = maps_of(step, bank).maps[:, 1:-1, 1:-1]
    # Column sums of the kernels: -4, 0, 4 across, nothing down, -3, 0, 3 on the diagonals.
    peaks = {
        "Sobel, across": (4, 4),
        "Sobel, down": (0, 0),
        "Sobel, falling": (3, 3),
        "Sobel, rising": (3, 3),
        "Laplacian": (1, -1),
    }
    for title, peak in peaks.items():
        expected = np.zeros((8, 14))
        expected[:, 6:8] = peak
        np.testing.assert_array_equal(inner[bank.titles.index(title)], expected, err_msg=title)
    np.testing.assert_array_equal(inner[bank.titles.index("luminance")], step[0, 1:-1, 1:-1])


def test_diagonals_know_falling_from_rising() -> None:
    rows, columns = np.mgrid[:9, :9]
    bank = filters.bank("edges")
    # Brightness grows by 1 per step to the right or down: 8 along the falling diagonal, 0 along the rising one.
    inner = maps_of((rows + columns)[None].astype(float), bank).maps[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(inner[bank.titles.index("Sobel, falling")], np.full((7, 7), 12))
    np.testing.assert_array_equal(inner[bank.titles.index("Sobel, rising")], np.zeros((7, 7)))


def test_filters_on_luminance_weigh_colours() -> None:
    values = pixels(saved(COLOURS))
    luminance = maps_of(values, filters.bank("edges")).maps[0]
    by_pillow = np.asarray(Image.fromarray(COLOURS).convert("L")) / 255
    np.testing.assert_allclose(luminance, by_pillow, atol=0.6 / 255)


def test_edge_filters_but_luminance_sum_to_zero() -> None:
    sums = filters.bank("edges").weights.sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(sums, [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_gaussians_sum_to_one_and_have_their_width(width: int) -> None:
    kernel = filters.gaussian(width)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    # Three standard deviations hold 97 % of a Gaussian's variance.
    assert kernel.sum(axis=0) @ offsets**2 == pytest.approx(width**2, rel=0.04)
    np.testing.assert_array_equal(kernel, kernel.T)


def test_widest_blur_and_all_differences_sum_to_luminance() -> None:
    values = RNG.random((1, 30, 40))
    bank = filters.bank("blur")
    np.testing.assert_allclose(bank.weights.sum(axis=(1, 2, 3)), [1] * 4 + [0] * 4, atol=1e-6)
    maps = maps_of(values, bank).maps
    np.testing.assert_allclose(maps[3:].sum(axis=0), values[0], atol=1e-6)


def test_gabor_filters_prefer_their_own_wave() -> None:
    bank = filters.bank("gabor")
    np.testing.assert_allclose(bank.weights.sum(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(np.abs(bank.weights).sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    y, x = np.mgrid[:61, :61]
    for title in bank.titles:
        angle, wavelength = (float(word.rstrip("°")) for word in title.removesuffix(" pixels").split(", "))
        turn = math.radians(angle)
        wave = np.cos(2 * np.pi * (x * math.cos(turn) - y * math.sin(turn)) / wavelength)
        strength = np.abs(maps_of(wave[None], bank).maps[:, 20:-20, 20:-20]).max(axis=(1, 2))
        assert bank.titles[strength.argmax()] == title


def test_gabor_kernel_is_daugmans_formula() -> None:
    kernel = filters.gabor_kernel(8, 0, 13)
    row = kernel[13]
    # The wave has a share of the envelope subtracted so that the sum is 0; two places give the share, others check it.
    envelope = np.exp(-(np.arange(14) ** 2) / 32)
    share = (row[15] / row[13]) / (row[15] / row[13] - envelope[2])
    for place in (1, 4, 8):
        expected = envelope[place] * (math.cos(math.pi * place / 4) - share) / (1 - share)
        assert row[13 + place] / row[13] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["edges", "gabor"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_equals_central_difference(name: str, channels: int) -> None:
    values = RNG.random((channels, 7, 6)).astype(np.float32)
    bank = filters.bank(name)
    gradient = maps_of(values, bank, gradient=True).gradient
    weights = bank.over(channels).astype(np.float64)

    def energy(photo: np.ndarray) -> float:
        return 0.5 * np.sum(portconv.conv(photo, weights, padding="same") ** 2)

    assert gradient.shape == values.shape
    for place in [(0, 0, 0), (channels - 1, 3, 2), (0, 6, 5)]:
        nudge = np.zeros(values.shape)
        nudge[place] = 0.5
        difference = energy(values + nudge) - energy(values - nudge)
        assert gradient[place] == pytest.approx(difference, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("backend", backends.available(), ids=lambda backend: backend.name)
def test_every_backend_gives_the_same_maps(backend: backends.Backend) -> None:
    sample = photograph.read(saved(COLOURS), 0)
    bank = filters.bank("edges")
    expected = convolve(backends.get("numpy"), sample, bank, True)
    actual = convolve(backend, sample, bank, True)
    assert actual.backend == backend.name
    np.testing.assert_allclose(actual.maps, expected.maps, atol=1e-5)
    np.testing.assert_allclose(actual.gradient, expected.gradient, atol=1e-4)


# Filters from a file


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_filters_from_a_file(shape: tuple[int, ...], channels: int) -> None:
    weights = RNG.integers(-9, 9, shape)
    np.save("mine.npy", weights)
    values = RNG.random((channels, 8, 9))
    actual = maps_of(values, filters.bank("mine.npy"))
    weights = weights.reshape(-1, shape[1] if len(shape) == 4 else 1, *shape[-2:])
    if weights.shape[1] == 1:
        values = np.tensordot([0.299, 0.587, 0.114], values, 1)[None] if channels == 3 else values
    elif channels == 1:
        values = np.repeat(values, 3, axis=0)
    expected = portconv.conv(values, weights.astype(np.float64), padding="same")
    np.testing.assert_allclose(actual.maps, expected, atol=1e-4)
    assert actual.bank.titles == tuple(f"filter {i}" for i in range(len(weights)))


BAD_ARRAYS = {
    "objects": np.array([[None, 1]]),
    "text": np.array([["a", "b"]]),
    "complex": np.ones((3, 3), complex),
    "bool": np.ones((3, 3), bool),
    "nan": np.full((3, 3), np.nan),
    "inf": np.full((3, 3), np.inf),
    "too-large": np.full((3, 3), 1e39),
    "one-dimension": np.ones(3),
    "five-dimensions": np.ones((1, 1, 1, 3, 3)),
    "two-channels": np.ones((1, 2, 3, 3)),
    "none": np.ones((0, 3, 3)),
    "no-cells": np.ones((2, 3, 0, 3)),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_unusable_filters_are_refused(name: str) -> None:
    np.save("bad.npy", BAD_ARRAYS[name], allow_pickle=True)
    assert "--filters bad.npy: " in refusal("--filters", "bad.npy")
    assert not Path("portconv-maps.png").exists()


def test_files_that_hold_no_array_are_refused() -> None:
    np.save("whole.npy", np.ones((40, 3, 3)))
    whole = Path("whole.npy").read_bytes()
    Path("cut.npy").write_bytes(whole[:200])
    Path("header.npy").write_bytes(whole[:40])
    with Path("claim.npy").open("wb") as file:
        # 8 TB, which must not be allocated.
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    Path("words.npy").write_text("no array\n")
    Path("empty.npy").touch()
    Path("folder.npy").mkdir()
    with Path("zip.npy").open("wb") as file:
        np.savez(file, np.ones((3, 3)))
    for name in ("cut.npy", "header.npy", "claim.npy", "words.npy", "empty.npy", "folder.npy", "zip.npy", "none.npy"):
        assert name in refusal("--filters", name)
    assert "edges, blur, gabor or a .npy file" in refusal("--filters", "sobel")


# Photographs


def test_colours_and_grey() -> None:
    np.testing.assert_allclose(pixels(saved(COLOURS)), np.moveaxis(COLOURS, 2, 0) / 255, atol=1e-7)
    grey = COLOURS[:, :, 0]
    np.testing.assert_allclose(pixels(saved(grey)), grey[None] / 255, atol=1e-7)
    black_and_white = pixels(saved(Image.fromarray(grey > 99)))
    np.testing.assert_array_equal(black_and_white, (grey > 99)[None])


def test_sixteen_bits() -> None:
    deep = np.array([[0, 1, 255], [256, 32768, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        np.testing.assert_allclose(pixels(saved(deep, name)), deep[None] / 65535, rtol=1e-6)


def test_fractions_and_other_depths() -> None:
    fractions = np.array([[0, 0.25], [0.5, 1]], np.float32)
    np.testing.assert_array_equal(pixels(saved(fractions, "f.tif"))[0], fractions)
    np.testing.assert_allclose(pixels(saved(fractions * 300 - 100, "f.tif"))[0], fractions, atol=1e-6)
    np.testing.assert_array_equal(pixels(saved(np.full((2, 2), 7, np.float32), "f.tif"))[0], np.zeros((2, 2)))


def test_transparency_lies_over_white() -> None:
    colour = np.array([[[255, 0, 51, 255], [255, 0, 51, 0], [255, 0, 51, 128]]], np.uint8)
    expected = [[1, 1, 1], [0, 1, 127 / 255], [0.2, 1, 153 / 255]]
    np.testing.assert_allclose(pixels(saved(colour))[:, 0], expected, atol=1.01 / 255)
    grey = Image.new("LA", (2, 1), (51, 255))
    grey.putpixel((1, 0), (51, 0))
    np.testing.assert_allclose(pixels(saved(grey)), [[[0.2, 1]]], atol=1e-6)


def test_palette() -> None:
    painted = Image.new("P", (2, 1))
    painted.putpalette([255, 0, 0, 0, 0, 255])
    painted.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(saved(painted))[:, 0], [[1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(pixels(saved(painted, transparency=1))[:, 0], [[1, 1], [0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_exif_orientation(orientation: int, upright: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    actual = photograph.read(saved(COLOURS, exif=exif), 0)
    expected = upright(COLOURS)
    np.testing.assert_allclose(actual.pixels, np.moveaxis(expected, 2, 0) / 255, atol=1e-7)
    assert actual.size == (expected.shape[1], expected.shape[0])


def test_printing_colours() -> None:
    flat = Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK")
    actual = pixels(saved(flat, "photo.tif"))
    np.testing.assert_allclose(actual[:, 4, 4], np.array([200, 100, 50]) / 255, atol=2 / 255)


def test_size_reduces_the_longer_side() -> None:
    deep = RNG.integers(0, 2, (30, 50)).astype(np.uint16) * 65535
    for path in (saved(np.uint8(deep), "plain.png"), saved(deep, "deep.png")):
        actual = photograph.read(path, 20)
        assert actual.pixels.shape == (1, 12, 20)
        assert actual.size == (50, 30)
        assert actual.pixels.mean() == pytest.approx(deep.mean() / 65535, abs=0.02)
        assert actual.pixels.min() >= 0
        assert actual.pixels.max() <= 1
        assert pixels(path, 0).shape == pixels(path, 50).shape == pixels(path, 9999).shape == (1, 30, 50)
    assert pixels(saved(np.zeros((1, 400), np.uint8)), 20).shape == (1, 1, 20)


def bad_pictures() -> None:
    Path("empty.png").touch()
    Path("folder").mkdir()
    Path("words.jpg").write_text("no picture\n")
    saved(RNG.integers(0, 256, (64, 64, 3), np.uint8), "whole.jpg")
    whole = Path("whole.jpg").read_bytes()
    Path("cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = saved(COLOURS, "whole.png").read_bytes()
    Path("cut.png").write_bytes(png[:-30])
    Path("header.png").write_bytes(png[:30])
    Path("bomb.png").write_bytes(_png_header(10_000, 10_000))
    Path("great-bomb.png").write_bytes(_png_header(60_000, 60_000))
    saved(np.full((2, 2), np.nan, np.float32), "nan.tif")


def _png_header(width: int, height: int) -> bytes:
    """Return a picture whose header claims so many pixels, with almost no data."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = (
        (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") for body in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_unusable_pictures_are_refused() -> None:
    bad_pictures()
    reasons = {
        "none.png": "no such file",
        "folder": "a directory",
        "empty.png": "an empty file",
        "words.jpg": "not a picture",
        "cut.jpg": "cannot be read",
        "cut.png": "cannot be read",
        "header.png": "",
        "bomb.png": "pixels, as in files",
        "great-bomb.png": "pixels, as in files",
        "nan.tif": "not finite",
        "two\nlines.png": "two lines.png: no such file",
    }
    for name, reason in reasons.items():
        said = refusal(name)
        assert reason in said
        assert "".join(name.split()) in said.replace(" ", "")
        assert not Path("portconv-maps.png").exists()


# Other options


@pytest.mark.parametrize("size", ["-1", "many", "1.5", "", "9" * 5000])
def test_unusable_sizes_are_refused(size: str) -> None:
    assert "--size: " in refusal("--size", size)


def test_unusable_outputs_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = saved(COLOURS)
    before = photo.read_bytes()
    Path("folder.png").mkdir()
    monkeypatch.setattr("portconv.command.photograph.read", lambda *_: pytest.fail("the work has begun"))
    for output, reason in {
        "maps.xyz": "'.xyz'",
        "maps": "expected one of",
        "maps.pgf": "'.pgf'",
        "folder.png": "a directory",
        "nowhere/maps.png": "no directory nowhere",
        "photo.png": "the photograph itself",
    }.items():
        assert reason in refusal(photo, "--output", output)
    assert photo.read_bytes() == before
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "may not be written" in refusal(photo, "--output", "maps.png")


def test_output_that_cannot_be_written_after_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "maps.png: No space left on device" in refusal("--size", "32", "--output", "maps.png")


def test_unknown_and_unavailable_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got 'nothing'" in refusal("--backend", "nothing")
    cupy = backends.find("cupy")
    monkeypatch.setitem(vars(cupy), "_loaded", (None, backends.Unavailable("no GPU here")))
    assert "no GPU here" in refusal("--backend", "cupy")
    assert run("--size", "32")["backend"] == "numpy"


def test_maps_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("portconv.command.run.conv_forward", full)
    assert "do not fit into memory" in refusal("--size", "32")


# The picture


def sheet(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def test_default_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "DPI", 200)
    report = run("--backend", "numpy")
    output = Path("portconv-maps.png").absolute()
    assert report["output"] == str(output)
    assert Path(report["photograph"]).name == "grace_hopper.jpg"
    assert report["photograph_pixels"] == report["convolved_pixels"] == [512, 600]
    assert (report["backend"], report["device"], report["channels"]) == ("numpy", "cpu", 3)
    assert (report["filters"], report["kernel"], len(report["maps"])) == ("edges", [3, 3], 6)
    drawn = sheet(output)
    height, width = drawn.shape[:2]
    assert [width, height] == report["output_pixels"]
    assert width >= 2000
    assert drawn.std() > 30
    assert {path.name for path in Path.cwd().iterdir()} == {"portconv-maps.png"}


def test_photograph_and_maps_are_where_they_belong() -> None:
    red = saved(np.full((40, 40, 3), (255, 0, 0), np.uint8))
    np.save("mine.npy", np.ones((1, 1)))
    run(red, "--filters", "mine.npy")
    drawn = sheet("portconv-maps.png")
    height, width = drawn.shape[:2]
    np.testing.assert_array_equal(drawn[height // 2, width // 4], [255, 0, 0])
    grey = drawn[height // 2, 3 * width // 4]
    np.testing.assert_allclose(grey, 0.299 * 255, atol=1.5)


def test_signed_maps_are_red_above_zero_and_blue_below() -> None:
    np.save("mine.npy", np.array([[-1.0, 0, 1]]))
    run(saved(np.repeat(np.uint8([[0] * 30 + [250] * 30]), 60, axis=0)), "--filters", "mine.npy")
    red, green, blue = np.moveaxis(sheet("portconv-maps.png"), 2, 0)
    right = np.s_[:, red.shape[1] // 2 :]
    # The step is the one rise; the black that the padding puts beside the white edge is the one fall.
    rise, fall = ((red - blue)[right] > 60).nonzero()[1], ((blue - red)[right] > 60).nonzero()[1]
    middle = (red.shape[1] - red.shape[1] // 2) / 2
    assert abs(np.median(rise) - middle) < 12
    assert np.median(fall) > 1.8 * middle
    assert np.median(green[right]) > 230


def test_gradient_is_drawn_and_reported() -> None:
    photo = saved(COLOURS)
    run(photo, "--output", "without.png")
    report = run(photo, "--gradient", "--output", "with.png")
    maps = convolve(backends.get("numpy"), photograph.read(photo, 0), filters.bank("edges"), False).maps
    assert report["energy"] == pytest.approx(0.5 * np.sum(maps.astype(np.float64) ** 2), rel=1e-5)
    assert Path("with.png").read_bytes() != Path("without.png").read_bytes()
    # Filters that see colours have a gradient in colours.
    np.save("mine.npy", np.array([[1, -1, 0]], np.float64)[:, :, None, None])
    run(saved(np.full((40, 40, 3), (255, 0, 0), np.uint8)), "--gradient", "--filters", "mine.npy")
    drawn = sheet("portconv-maps.png").reshape(-1, 3)
    assert (np.abs(drawn - [255, 0, 127.5]).max(axis=1) < 1).mean() > 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (40, 200)])
def test_photographs_of_every_shape(shape: tuple[int, int]) -> None:
    photo = saved(RNG.integers(0, 256, shape, np.uint8))
    report = run(photo, "--gradient")
    width, height = report["output_pixels"]
    assert sheet("portconv-maps.png").shape == (height, width, 3)
    assert 0.2 < width / height < 5


@pytest.mark.parametrize("ending", ["svg", "pdf", "jpg", "TIFF"])
def test_other_formats(ending: str) -> None:
    run("--size", "32", "--output", f"maps.{ending}")
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8", "TIFF": b"II*\0"}
    assert Path(f"maps.{ending}").read_bytes().startswith(starts[ending])


def test_many_maps_and_odd_names() -> None:
    np.save("many.npy", RNG.standard_normal((70, 3, 3)))
    photo = saved(COLOURS, "a $x_y$ 漢 [b] photo.png")
    report = run(photo, "--filters", "many.npy", "--backend", "numpy")
    assert len(report["maps"]) == 70
    assert report["photograph"].endswith(photo.name)


def test_file_names_that_are_no_text() -> None:
    try:
        odd = saved(COLOURS).rename("\udcff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    np.save("\udcfe.npy", np.ones((3, 3)))
    arguments = [str(odd), "--filters", "\udcfe.npy", "--output", "\udcfd.png"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert Path("\udcfd.png").stat().st_size > 1000


def test_words() -> None:
    result = CliRunner().invoke(command, [str(saved(COLOURS)), "--size", "7", "--gradient", "--backend", "numpy"])
    assert result.exit_code == 0
    words = result.output.splitlines()
    assert [line.split(":")[0] for line in words] == ["Wrote", "Photograph", "Filters", "Backend", "Gradient"]
    assert str(Path("portconv-maps.png").absolute()) in words[0]
    assert "(14 x 9, reduced to 7 x 4, colour)" in words[1]
    assert "edges: 6 maps, kernels of 3 x 3" in words[2]
    assert "numpy on cpu" in words[3]


@pytest.mark.parametrize("maps", [1, 2, 3, 5, 6, 7, 8, 12, 31, 64])
@pytest.mark.parametrize("large", [1, 2])
@pytest.mark.parametrize("aspect", [0.25, 0.7, 1, 1.5, 8])
def test_arrangements_overlap_nowhere_and_leave_little_empty(maps: int, large: int, aspect: float) -> None:
    grid = picture.choose_grid(maps, large, aspect)
    boxes = [(*place, grid.zoom) for place in grid.large_places()] + [(*place, 1) for place in grid.map_places()]
    assert len(boxes) == large + maps
    columns, rows = grid.shape
    for x, y, side in boxes:
        assert 0 <= x <= columns - side
        assert 0 <= y <= rows - side
    for (x, y, side), (u, v, other) in itertools.combinations(boxes, 2):
        assert x + side <= u or u + other <= x or y + side <= v or v + other <= y
    assert sum(side**2 for _, _, side in boxes) >= 0.7 * columns * rows


@pytest.mark.parametrize(("name", "options"), [("pages.tif", {}), ("frames.gif", {"duration": 100})])
def test_which_picture_of_several_is_taken_is_said(name: str, options: dict[str, Any]) -> None:
    pages = [Image.fromarray(np.full((9, 14), level, np.uint8)) for level in (0, 128, 255)]
    path = saved(pages[0], name, save_all=True, append_images=pages[1:], **options)
    assert run(path)["pictures_in_file"] == 3
    done = CliRunner().invoke(command, [str(path)])
    (line,) = (line for line in done.output.splitlines() if line.startswith("Photograph:"))
    assert line.endswith(
        f"{name} (14 x 9, {'colour' if name.endswith('gif') else 'grey'}, the first of the file's 3 pictures)"
    )
    assert np.all(photograph.read(path, 0).pixels == 0)
    assert run(saved(pages[0], "one.png"))["pictures_in_file"] == 1
