"""The pytest plugin: it runs a test on every array library and device here; see docs/testing.md.

pytest loads it wherever portconv is installed. So it imports nothing of portconv, and changes no test, until a test
asks for one of its fixtures. It lies beside the package, because an import of any module in the package imports all of
it. `xp` runs a test on the default device of each library, `portconv_target` on each device of each library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from portconv.testing import Target

NAMES = "portconv_backends"
"""The name of the setting in pytest's configuration, and of the value of the option `--portconv-backend`."""
PARAM = "_portconv_param"
"""The fixture that the plugin parametrizes; it leaves alone tests with another `xp`, which does not need this one."""
MARKS = {
    "skip_backends(*names, reason)": "do not run the test on these backends of portconv's",
    "xfail_backends(*names, reason, raises=None)": "run the test on these backends of portconv's, where it has to fail",
}
KEYWORDS = {"skip_backends": {"reason"}, "xfail_backends": {"reason", "raises"}}


class Mistake(Exception):
    """A mark is wrong; the message says how."""


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
    """Register the marks, and check the backends named on the command line."""
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
    """Run a test that asks for one of the plugin's fixtures on each library."""
    if PARAM not in metafunc.fixturenames:
        return
    from portconv.errors import PortconvError
    from portconv.testing import survey

    config = metafunc.config
    try:
        surveys = survey(config.getoption(NAMES) or config.getini(NAMES) or None)
        _marks(metafunc.definition)
    except PortconvError as error:
        raise pytest.Collector.CollectError(f"{NAMES}: {error}") from error
    except Mistake as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from error
    params = []
    for library in surveys:
        if library.reason is not None:
            skip = pytest.mark.skip(reason=f"{library.name} is unavailable: {library.reason}")
            params.append(pytest.param(None, id=library.name, marks=skip))
        devices = library.targets if "portconv_target" in metafunc.fixturenames else library.targets[:1]
        params += [pytest.param(target, id=target.id) for target in devices]
    metafunc.parametrize(PARAM, params, indirect=True)


@pytest.hookimpl(tryfirst=True)  # before pytest looks for its own marks
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Turn the marks that name the test's backend into pytest's own marks."""
    target = getattr(getattr(item, "callspec", None), "params", {}).get(PARAM)
    if target is None:
        return
    try:
        for mark in _marks(item):
            if target.name in mark.args:
                pytest_mark = pytest.mark.skip if mark.name == "skip_backends" else pytest.mark.xfail(strict=True)
                item.add_marker(pytest_mark(**mark.kwargs))
    except Mistake as error:
        raise pytest.fail.Exception(f"{item.nodeid}: {error}", pytrace=False) from None


def _marks(item: Any) -> list[pytest.Mark]:
    """Return a test's marks that are the plugin's, checked."""
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
    target: Target = request.param
    return target


@pytest.fixture
def portconv_target(_portconv_param: Target) -> Target:
    """Give a test each array library on each of its devices: `xp`, `device`, `name`, `asarray` and `to_numpy`."""
    return _portconv_param


@pytest.fixture
def xp(_portconv_param: Target) -> Any:
    """Give a test the Array API namespace of each array library; beside `portconv_target`, that of its library."""
    return _portconv_param.xp
