"""The pytest plugin: tests that run on every array library and device here; see docs/testing.md.

It is loaded wherever portconv is installed, so it imports nothing of portconv's, and touches no test, until one asks
for a fixture of its. That is why it lies beside the package, of which no module comes without all of it. `xp` is of one
device of each library, as arrays made without `device=` are; `portconv_target` of all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from portconv.testing import Target

NAMES = "portconv_backends"
"""The setting of pytest's configuration, and where the option `--portconv-backend` is kept."""
PARAM = "_portconv_param"
"""What tests are parametrized by; fixtures of one's own named `xp` need it not, so their tests are left alone."""
MARKS = {
    "skip_backends(*names, reason)": "do not run the test on these backends of portconv's",
    "xfail_backends(*names, reason, raises=None)": "run the test on these backends of portconv's, where it has to fail",
}
KEYWORDS = {"skip_backends": {"reason"}, "xfail_backends": {"reason", "raises"}}


class Mistake(Exception):
    """What is wrong with a mark, in words."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting that choose backends."""
    group = parser.getgroup("portconv")
    group.addoption(
        "--portconv-backend",
        action="append",
        dest=NAMES,
        metavar="NAME",
        help="run tests of `xp` or `portconv_target` on this backend, such as torch, or on one device of it, such as "
        "torch-cuda:0 (repeatable; one that does not work here is an error)",
    )
    parser.addini(
        NAMES, "portconv's backends to run such tests on (default: all; skipped where one does not work)", "args"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks; check what was asked for on the command line."""
    for signature, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{signature}: {meaning}")
    if config.getoption(NAMES):
        from portconv.errors import PortconvError
        from portconv.testing import targets

        try:
            targets(config.getoption(NAMES))
        except PortconvError as error:
            raise pytest.UsageError(f"--portconv-backend: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a fixture of the plugin's on each library."""
    if PARAM not in metafunc.fixturenames:
        return
    from portconv.errors import PortconvError
    from portconv.testing import survey

    config = metafunc.config
    try:
        surveyed = survey(config.getoption(NAMES) or config.getini(NAMES) or None)
        _marks(metafunc.definition)
    except PortconvError as error:
        raise pytest.Collector.CollectError(f"{NAMES}: {error}") from error
    except Mistake as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from error
    params = []
    for found in surveyed:
        if found.reason is not None:
            skip = pytest.mark.skip(reason=f"{found.name} is unavailable: {found.reason}")
            params.append(pytest.param(None, id=found.name, marks=skip))
        devices = found.targets if "portconv_target" in metafunc.fixturenames else found.targets[:1]
        params += [pytest.param(target, id=target.id) for target in devices]
    metafunc.parametrize(PARAM, params, indirect=True)


@pytest.hookimpl(tryfirst=True)  # before pytest looks for its own marks
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Turn the marks that name a test's backend into pytest's own; those of its other parameters are here, too."""
    target = getattr(getattr(item, "callspec", None), "params", {}).get(PARAM)
    if target is None:
        return
    try:
        for mark in _marks(item):
            if target.name in mark.args:
                own = pytest.mark.skip if mark.name == "skip_backends" else pytest.mark.xfail(strict=True)
                item.add_marker(own(**mark.kwargs))
    except Mistake as error:
        raise pytest.fail.Exception(f"{item.nodeid}: {error}", pytrace=False) from None


def _marks(item: Any) -> list[pytest.Mark]:
    """The plugin's marks of a test, checked."""
    from portconv import backends

    marks = [mark for kind in KEYWORDS for mark in item.iter_markers(kind)]
    for mark in marks:
        names = ", ".join(backends.names())
        if not mark.args:
            raise Mistake(f"{mark.name}: got no backend, expected one or more of {names}")
        for name in mark.args:
            if name not in backends.names():
                raise Mistake(f"{mark.name}: got {name!r}, expected one or more of {names}")
        reason = mark.kwargs.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise Mistake(f"{mark.name}: got {'no reason' if reason is None else repr(reason)}, expected reason=WORDS")
        for other in sorted(set(mark.kwargs) - KEYWORDS[mark.name]):
            raise Mistake(f"{mark.name}: got {other}=, expected {' or '.join(sorted(KEYWORDS[mark.name]))} alone")
    return marks


@pytest.fixture
def _portconv_param(request: pytest.FixtureRequest) -> Target:
    own: Target = request.param
    return own


@pytest.fixture
def portconv_target(_portconv_param: Target) -> Target:
    """Each array library here on each of its devices: `xp`, `device`, `name`, `asarray` and `to_numpy`."""
    return _portconv_param


@pytest.fixture
def xp(_portconv_param: Target) -> Any:
    """The Array API namespace of each array library here; beside `portconv_target`, of its library."""
    return _portconv_param.xp
