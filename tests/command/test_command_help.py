"""Test that each command's help can be read in a terminal of 80 columns, with no sentence cut."""

from __future__ import annotations

import pytest

MISSING = "the command's libraries are not installed: pip install 'portconv[cli]'"
testing = pytest.importorskip("click.testing", reason=MISSING)
pytest.importorskip("rich", reason=MISSING)

from portconv.command.group import SUBCOMMANDS, portconv  # noqa: E402  (needs click)


@pytest.mark.parametrize("names", [(), *((name,) for name in SUBCOMMANDS)], ids=lambda names: names[0] if names else "")
def test_help_fits_and_is_whole(names: tuple[str, ...]) -> None:
    done = testing.CliRunner().invoke(portconv, [*names, "--help"], terminal_width=80)
    assert done.exit_code == 0, done.output
    assert "..." not in done.output.replace("[ARGS]...", "")
    assert max(map(len, done.output.splitlines())) <= 80


def test_the_help_of_verify_says_what_is_compared() -> None:
    words = " ".join(testing.CliRunner().invoke(portconv, ["verify", "--help"]).output.split())
    assert "portconv runs forward and backward on the arrays of each library" in words
    assert "With --algorithm native the convolution that each library has of its own computes them." in words
