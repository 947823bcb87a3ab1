"""Compiled kernels on disk, so that a process need not compile what an earlier one has compiled.

A file holds one object, behind a header of all that the object depends on and a checksum of both. Another version of
anything in the header has another name, so versions live side by side, and what is not there is silently compiled.

What a file holds will run. So a file counts only if this user alone can have written it, and what is damaged, foreign
or linked is ignored, with one warning in a process, and made anew. Files are written aside and renamed: who reads one
meanwhile has the old one or the new one, whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import time
import warnings
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from .. import forks
from .._version import __version__
from ..errors import in_a_line
from .compile import binding, compiled
from .families import Kernel
from .target import Target

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "PORTCONV_KERNEL_CACHE"
"""The environment variable that names another folder, or `OFF`."""
OFF = "off"
MAGIC = b"portconv kernel 1\n"
"""How each file begins; the number changes with the format."""
MOST_BYTES = 1 << 22
"""The most bytes of a file that is read; objects have some ten thousand."""
DTYPE = "float32"
"""The dtype of all kernels."""
NAME = re.compile(r"[\w.-]+-[0-9a-f]{32}\.kernel", re.ASCII)
ASIDE = re.compile(r"\.[\w.-]+-[0-9a-f]{32}\.kernel\.[0-9a-f]{16}", re.ASCII)
"""The names of files, and of those that are being written or were left half written."""
LEFT_AFTER = 3600.0
"""The seconds after which nobody still writes a file."""

IMPORTED = time.time_ns()
"""When this process imported the package. Files that changed afterwards would name objects that they did not make."""

CURRENT, STALE, DAMAGED = "current", "stale", "damaged"
"""What a file is: of this version, of another one, or not to be trusted."""

_has_warned = False


class KernelCacheWarning(UserWarning):
    """A cached kernel is ignored, or none can be kept; the message says why."""


class Entry(NamedTuple):
    """A file of the cache.

    Attributes
    ----------
    path : Path
    kernel, target : str
        What it holds, and for which CPU; empty if it is damaged.
    nbytes : int
        The size of the object.
    state : str
        `CURRENT`, `STALE` or `DAMAGED`.
    """

    path: Path
    kernel: str
    target: str
    nbytes: int
    state: str


class _Distrusted(Exception):
    """Why a file or a folder is not used."""


def object_of(kernel: Kernel, target: Target) -> bytes:
    """Return a kernel's object: the cached one, or else a new one, which is cached."""
    where = folder()
    if where is None or not sources():
        return compiled(kernel.written(target), target)
    header = _header(kernel, target)
    path = where / file_name(kernel, target)
    contents = _found(path, header)
    if contents is None:
        contents = compiled(kernel.written(target), target)
        _store(path, header, contents)
    return contents


def folder() -> Path | None:
    """Return the folder of the cache: `kernels` beside the calibration, or what the environment says; None if off."""
    path_class: type[Path] = forks.imported("pathlib").Path
    asked = os.environ.get(VARIABLE, "").strip()
    if asked.lower() == OFF:
        return None
    try:
        if asked:
            return path_class(asked).expanduser().absolute()
        if sys.platform == "win32":
            user = path_class(os.environ.get("LOCALAPPDATA") or path_class.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            user = path_class.home() / "Library" / "Caches"
        else:
            user = path_class(os.environ.get("XDG_CACHE_HOME") or path_class.home() / ".cache")
    except RuntimeError:  # there is no home folder
        return None
    return user / "portconv" / "kernels"


def file_name(kernel: Kernel, target: Target) -> str:
    """Return the name of a kernel's file."""
    return f"{kernel}-{DTYPE}-{target.name}-{_hash(_header(kernel, target))[:32]}.kernel"


def distrust(where: Path) -> str | None:
    """Return why a folder is not used; None if it is, or is not there yet."""
    try:
        _check_folder(where)
    except FileNotFoundError:
        return None
    except (OSError, _Distrusted) as error:
        return _why(error)
    return None


def entries() -> list[Entry]:
    """Return what is in the cache; nothing if it is off or not to be trusted."""
    where = folder()
    if where is None:
        return []
    try:
        _check_folder(where)
        paths = sorted(path for path in where.iterdir() if NAME.fullmatch(path.name))
    except (OSError, _Distrusted):
        return []
    return [_entry(path) for path in paths]


def clear() -> int:
    """Remove the files of the cache and no others; return how many. An `OSError` says what could not be removed."""
    where, count = folder(), 0
    if where is None:
        return 0
    try:
        _check_folder(where)
    except FileNotFoundError:
        return 0
    except _Distrusted as error:
        raise OSError(f"{where}: {error}") from None
    for path in sorted(where.iterdir()):
        if _is_ours(path):
            path.unlink(missing_ok=True)
            count += 1
    return count


def _is_ours(path: Path) -> bool:
    """Return whether portconv has written a file, and writes it no more."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    is_left = ASIDE.fullmatch(path.name) and time.time() - found.st_mtime > LEFT_AFTER
    return bool(NAME.fullmatch(path.name) or is_left) and stat.S_ISREG(found.st_mode) and _is_own(found)


def _entry(path: Path) -> Entry:
    try:
        contents = _read(path)
        header, _, rest = _checked(contents).partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in header.decode().split("\n"))
        is_current = fields.items() >= _versions().items()
        kernel, target = f"{fields['family']}-{fields['variant']}", f"{fields['target']} ({fields['cpu']})"
    except (OSError, ValueError, KeyError, _Distrusted):
        return Entry(path, "", "", 0, DAMAGED)
    return Entry(path, kernel, target, len(rest), CURRENT if is_current else STALE)


# What a file holds.


def _versions() -> dict[str, str]:
    """Return what makes the objects of another version others."""
    llvm = binding()
    return {
        "portconv": __version__,
        "sources": sources(),
        "LLVM": ".".join(map(str, llvm.llvm_version_info)),
        "llvmlite": str(forks.imported("llvmlite").__version__),
    }


def _header(kernel: Kernel, target: Target) -> bytes:
    """Return all that an object depends on, a line each and an empty one."""
    of_target = {"target" if name == "name" else name: str(value) for name, value in target._asdict().items()}
    fields = {**_versions(), **of_target, "family": kernel.family, "variant": kernel.variant, "dtype": DTYPE}
    return "".join(f"{name}: {' '.join(value.split())}\n" for name, value in fields.items()).encode() + b"\n"


def _hash(contents: bytes) -> str:
    return str(hashlib.sha256(contents).hexdigest())


@cache
def sources() -> str:
    """Return a hash of the files of this package; an empty one if they are not those that were imported."""
    # The text of a kernel would say as much, and takes milliseconds to write.
    path_class: type[Path] = forks.imported("pathlib").Path
    try:
        paths = sorted(path_class(__file__).parent.glob("*.py"))
        texts = {path.name: path.read_bytes() for path in paths}
        changed = max((max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths), default=0)
    except OSError:
        return ""
    return _hash(repr(texts).encode()) if 0 < changed < IMPORTED else ""


# Reading.


def _found(path: Path, header: bytes) -> bytes | None:
    """Return the object of a file; None if there is none that can be trusted."""
    try:
        _check_folder(path.parent)
        contents = _checked(_read(path))
        if not contents.startswith(header):
            raise _Distrusted("it is of another kernel, version or CPU")
        return contents[len(header) :]
    except FileNotFoundError:
        return None
    except (OSError, _Distrusted) as error:
        _warn(f"ignores {path}: {_why(error)}; the kernel is compiled anew")
        return None


def _checked(contents: bytes) -> bytes:
    """Return a file's header and object, if they are what was written."""
    start = len(MAGIC) + 65
    rest = contents[start:]
    if contents[:start] != MAGIC + _hash(rest).encode() + b"\n":
        raise _Distrusted("it is damaged")
    return rest


def _check_folder(where: Path) -> None:
    """Raise why a folder is not to be trusted."""
    found = where.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise _Distrusted("the folder is a link")
    if not stat.S_ISDIR(found.st_mode):
        raise _Distrusted("there is no folder, but something else of that name")
    if not _is_own(found) and found.st_uid != 0:
        raise _Distrusted("the folder belongs to another user")
    if _is_open(found):
        raise _Distrusted("other users may write to the folder")


def _read(path: Path) -> bytes:
    """Read a plain file of this user."""
    if path.is_symlink():
        raise _Distrusted("it is a link")
    # What became a link a moment ago fails; a pipe, which might make one wait, does not.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _Distrusted("it is no plain file")
        if not _is_own(found):
            raise _Distrusted("it belongs to another user")
        if _is_open(found):
            raise _Distrusted("other users may write to it")
        contents = file.read(MOST_BYTES + 1)
    if len(contents) > MOST_BYTES:
        raise _Distrusted(f"it has more than {MOST_BYTES} bytes")
    return contents


def _is_own(found: os.stat_result) -> bool:
    # The effective user, for whom the code will run; Windows has none, and guards a user's folders in its own way.
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _is_open(found: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


# Writing.


def _store(path: Path, header: bytes, contents: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(path.parent)
        _write(path, header + contents)
    except (OSError, _Distrusted) as error:
        _warn(f"keeps no kernels in {path.parent}: {_why(error)}; each process compiles its own")


def _write(path: Path, rest: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_BINARY"))
    try:
        with os.fdopen(os.open(aside, flags, 0o600), "wb") as file:
            file.write(MAGIC + _hash(rest).encode() + b"\n" + rest)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _why(error: Exception) -> str:
    """Say what is wrong with a file that is named already."""
    return (isinstance(error, OSError) and error.strerror) or in_a_line(error)


def _warn(words: str) -> None:
    """Warn once in a process."""
    global _has_warned
    with forks.lock:
        if _has_warned:
            return
        _has_warned = True
    warnings.warn(f"portconv {words}", KernelCacheWarning, stacklevel=2)
