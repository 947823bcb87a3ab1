"""Test the layers that `portconv verify` reads from files, and that bad ones are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from portconv.verification import Case, layers

DOCUMENT = Path(__file__).parents[2] / "docs" / "verify.md"
GOOD = {"name": "a", "x_shape": [1, 2, 5, 5], "w_shape": [3, 2, 3, 3]}


def written(folder: Path, entries: Any) -> Path:
    path = folder / "layers.json"
    path.write_text(json.dumps(entries))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(layers.Unusable) as caught:
        layers.read(path)
    words = str(caught.value)
    assert words.startswith(f"{path}: ")
    assert "\n" not in words
    return words.removeprefix(f"{path}: ")


def test_every_key_reaches_the_case(tmp_path: Path) -> None:
    entry = {
        "name": "all of it",
        "x_shape": [2, 9, 10, 4],
        "w_shape": [6, 2, 3, 2],
        "bias": True,
        "stride": [2, 1],
        "padding": [[1, 0], [2, 1]],
        "dilation": 2,
        "groups": 2,
        "padding_mode": "constant",
        "padding_value": 0.5,
        "data_format": "channels_last",
        "algorithm": "gemm",
    }
    assert entry.keys() == set(layers.KNOWN)
    (case,) = layers.read(written(tmp_path, [entry]))
    assert case == Case(
        "all of it",
        (2, 9, 10, 4),
        (6, 2, 3, 2),
        True,
        (2, 1),
        ((1, 0), (2, 1)),
        2,
        2,
        "constant",
        0.5,
        "channels_last",
        "gemm",
    )
    # The kernel spans 5 and 3 cells: (9 + 1 - 5) // 2 + 1 rows and 10 + 3 - 3 + 1 columns.
    assert case.out_shape == (2, 3, 11, 6)


def test_a_list_may_have_a_name(tmp_path: Path) -> None:
    assert layers.read(written(tmp_path, {"layers": [GOOD]})) == layers.read(written(tmp_path, [GOOD]))


def test_the_documented_examples_are_the_same_layers(tmp_path: Path) -> None:
    if not DOCUMENT.exists():
        pytest.skip("docs/verify.md is not beside the tests")
    read_layers = []
    for form in ("toml", "json"):
        (example,) = re.findall(rf"```{form}\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
        path = tmp_path / f"layers.{form}"
        path.write_text(example)
        read_layers.append(layers.read(path))
    assert read_layers[0] == read_layers[1]
    assert [(case.name, case.out_shape) for case in read_layers[0]] == [
        ("stem", (2, 16, 32, 32)),
        ("depthwise, channels last", (2, 30, 30, 16)),
    ]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "got no layers, expected at least one"),
        ({"layers": []}, "got no layers, expected at least one"),
        (3, "got int, expected a list of layers"),
        ({"layers": [GOOD], "more": 1}, "got the keys ['layers', 'more'], expected a list of layers"),
        ([3], "layer 1: got int, expected a table of name, x_shape"),
        ([GOOD, GOOD], "got two layers of the name 'a', expected different ones"),
        ([{**GOOD, "strid": 1}], "layer 1 ('a'): got the unknown key 'strid', expected some of name, x_shape"),
        ([{**GOOD, "dtype": "float32"}], "layer 1 ('a'): got the unknown key 'dtype'"),
        ([{"name": "x"}], "layer 1 ('x'): got no 'x_shape'"),
        ([{"x_shape": [1]}], "layer 1: got no 'name'"),
        ([{**GOOD, "name": ""}], "layer 1: name: got '', expected a string that can be printed"),
        ([{**GOOD, "name": "a\nb"}], "layer 1: name: got 'a\\nb', expected a string that can be printed"),
        ([{**GOOD, "name": 7}], "layer 1: name: got 7"),
        ([GOOD, {**GOOD, "name": "b", "bias": 1}], "layer 2 ('b'): bias: got 1, expected true or false"),
        ([{**GOOD, "stride": 1.5}], "layer 1 ('a'): stride: got 1.5, expected an int"),
        ([{**GOOD, "stride": 0}], "layer 1 ('a'): stride: got 0, expected an int of at least 1"),
        ([{**GOOD, "stride": True}], "layer 1 ('a'): stride: got True, expected an int"),
        ([{**GOOD, "groups": [1]}], "layer 1 ('a'): groups: got (1,), expected an int"),
        ([{**GOOD, "x_shape": "abc"}], "layer 1 ('a'): x_shape: got 'abc', expected a tuple of ints"),
        ([{**GOOD, "x_shape": [1, 2, 5, None]}], "layer 1 ('a'): x_shape[3]: got None, expected an int"),
        ([{**GOOD, "w_shape": [3, 2, 9, 9]}], "layer 1 ('a'): w_shape: got a kernel of 9 in spatial dimension 0"),
        ([{**GOOD, "w_shape": [3, 4, 3, 3]}], "layer 1 ('a'): w_shape: got shape (3, 4, 3, 3), for 4 input channels"),
        ([{**GOOD, "padding": "sme"}], "layer 1 ('a'): padding: got 'sme', expected 'valid' or 'full' or"),
        ([{**GOOD, "padding": [[1, 2], [3]]}], "layer 1 ('a'): padding[1]: got (3,), expected a pair"),
        ([{**GOOD, "padding": {"a": 1}}], "layer 1 ('a'): padding: got {'a': 1}, expected an int"),
        ([{**GOOD, "padding_mode": "mirror"}], "layer 1 ('a'): padding_mode: got 'mirror', expected 'zeros' or"),
        ([{**GOOD, "data_format": 3}], "layer 1 ('a'): data_format: got 3, expected 'channels_first' or"),
        ([{**GOOD, "algorithm": "magic"}], "layer 1 ('a'): algorithm: got 'magic', expected 'auto' or"),
        ([{**GOOD, "padding": 10**30}], "layer 1 ('a'): x_shape: got shape (1, 2, 5, 5), padded to"),
    ],
)
def test_bad_entries_are_refused_by_name(tmp_path: Path, entries: Any, words: str) -> None:
    assert refusal(written(tmp_path, entries)).startswith(words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("layers.toml", b"[[layers]", "not TOML: "),
        ("layers.json", b'[{"name": ', "not JSON: "),
        ("layers.json", b"\xff\xfe", "not JSON: "),
        ("layers.json", b"[" * 100_000, "not JSON: "),
        ("layers.yaml", b"- name: a", "got the ending '.yaml', expected .toml or .json"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(words)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml") == "cannot be read: No such file or directory"
    (tmp_path / "folder.json").mkdir()
    assert refusal(tmp_path / "folder.json") == "cannot be read: Is a directory"
