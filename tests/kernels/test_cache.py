"""The cache of kernels: what is stored is used, and nothing that someone else may have written, or that is damaged."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from portconv import calibration

pytest.importorskip("llvmlite", reason="kernels are compiled with llvmlite: pip install 'portconv[kernels]'")

from portconv.kernels import cache, target
from portconv.kernels.families import kernels

KERNEL, OTHER = kernels()[:2]
AVX2 = target.cross("avx2")
OBJECT = bytes(range(256)) * 64
POSIX = pytest.mark.skipif(os.name != "posix", reason="this system has no owners and modes of this kind")
ROOT = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files to another user")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled, in a process that has not warned yet; compiling takes no time."""
    done: list[str] = []

    def compiled(module: object, target: target.Target) -> bytes:
        done.append(target.name)
        return OBJECT

    monkeypatch.setattr(cache, "compiled", compiled)
    monkeypatch.setattr(cache, "_has_warned", False)
    return done


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def stored(where: Path, made: list[str]) -> Path:
    """The file of a kernel that an earlier process has stored."""
    cache.object_of(KERNEL, AVX2)
    made.clear()
    return where / cache.file_name(KERNEL, AVX2)


def asked(*kernels: object) -> list[str]:
    """What is warned of when objects are asked for, which are always right."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kernel in kernels or (KERNEL,):
            assert cache.object_of(kernel, AVX2) == OBJECT
    assert {warning.category for warning in caught} <= {cache.KernelCacheWarning}
    return [str(warning.message) for warning in caught]


def written(path: Path, rest: bytes) -> None:
    """Write a file with the right checksum."""
    path.write_bytes(cache.MAGIC + cache._hash(rest).encode() + b"\n" + rest)


def test_an_object_is_compiled_once_and_then_read(where, made):
    assert asked(KERNEL, KERNEL, OTHER, KERNEL, OTHER) == []
    assert made == ["avx2", "avx2"]
    assert sorted(path.name for path in where.iterdir()) == sorted(
        cache.file_name(kernel, AVX2) for kernel in (KERNEL, OTHER)
    )


@POSIX
def test_files_and_folder_are_the_user_s_alone(where, made):
    before = os.umask(0)
    try:
        cache.object_of(KERNEL, AVX2)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (where, *where.iterdir())]
    assert modes == [0o700, 0o600]


def test_off_neither_reads_nor_writes(where, made, monkeypatch):
    asked()
    monkeypatch.setenv(cache.VARIABLE, " OFF ")
    assert cache.folder() is None
    assert (asked(), cache.entries(), cache.clear()) == ([], [], 0)
    assert made == ["avx2", "avx2"]


def test_the_folder_is_beside_the_calibration(monkeypatch):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.folder() == calibration.path().with_name("kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.folder() == Path("/elsewhere/portconv/kernels").absolute()


@POSIX
def test_the_variable_names_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for named in ("~/mine", "mine", str(tmp_path / "mine")):
        monkeypatch.setenv(cache.VARIABLE, named)
        assert cache.folder() == tmp_path / "mine"


def test_without_a_home_folder_there_is_no_cache(monkeypatch, made):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in (cache.VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache.folder() is None
    assert asked() == []


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flipped(at: int):
    def damage(path: Path) -> None:
        contents = bytearray(path.read_bytes())
        contents[at] ^= 1
        path.write_bytes(bytes(contents))

    return damage


def cut(by: int):
    return lambda path: path.write_bytes(path.read_bytes()[:-by])


def of_another_version(path: Path) -> None:
    _, _, rest = path.read_bytes().split(b"\n", 2)
    written(path, rest.replace(b"LLVM: ", b"LLVM: 1"))


def of_another_kernel(path: Path) -> None:
    cache.object_of(OTHER, AVX2)
    path.write_bytes(path.with_name(cache.file_name(OTHER, AVX2)).read_bytes())


DAMAGES = {
    "a link": (as_link, "it is a link"),
    "a pipe": (as_pipe, "it is no plain file"),
    "open to the group": (lambda path: path.chmod(0o620), "other users may write to it"),
    "open to all": (lambda path: path.chmod(0o602), "other users may write to it"),
    "empty": (lambda path: path.write_bytes(b""), "it is damaged"),
    "one byte short": (cut(1), "it is damaged"),
    "without an object": (cut(len(OBJECT)), "it is damaged"),
    "one byte more": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "it is damaged"),
    "too large": (lambda path: os.truncate(path, cache.MOST_BYTES + 1), "it has more than 4194304 bytes"),
    "another version's": (of_another_version, "it is of another kernel, version or CPU"),
    "another kernel's": (of_another_kernel, "it is of another kernel, version or CPU"),
    "another user's": pytest.param(lambda path: os.chown(path, 1, 1), "it belongs to another user", marks=ROOT),
    # In the number of the format, the checksum, the line after it, the header and the object.
    **{f"flipped at {at}": (flipped(at), "it is damaged") for at in (0, 17, 18, 81, 82, 83, 200, -1, -len(OBJECT))},
}


@POSIX
@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_not_to_be_trusted_is_ignored_and_made_anew(stored, made, damage, words):
    damage(stored)
    made.clear()
    (warning,) = asked(KERNEL, KERNEL)
    assert warning == f"portconv ignores {stored}: {words}; the kernel is compiled anew"
    assert made == ["avx2"]
    assert stat.S_ISREG(stored.lstat().st_mode)
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    if stored.with_name("elsewhere").exists():  # what a link led to is left as it was
        assert stored.with_name("elsewhere").read_bytes() == stored.read_bytes()


@POSIX
def test_a_folder_in_the_place_of_a_file_stays(stored, made):
    stored.unlink()
    stored.mkdir()
    (warning,) = asked(KERNEL, KERNEL)
    assert f"ignores {stored}: " in warning
    assert made == ["avx2", "avx2"]
    assert [*stored.parent.iterdir()] == [stored]


def folder_as_link(where: Path) -> None:
    where.rename(where.with_name("elsewhere"))
    where.symlink_to(where.with_name("elsewhere"))


def folder_as_file(where: Path) -> None:
    where.rename(where.with_name("elsewhere"))
    where.write_text("mine")


FOLDERS = {
    "a link": (folder_as_link, "the folder is a link"),
    "a file": (folder_as_file, "there is no folder, but something else of that name"),
    "open to the group": (lambda where: where.chmod(0o770), "other users may write to the folder"),
    "open to all": (lambda where: where.chmod(0o1777), "other users may write to the folder"),
    "another user's": pytest.param(
        lambda where: os.chown(where, 1, 1), "the folder belongs to another user", marks=ROOT
    ),
}


@POSIX
@pytest.mark.parametrize(("damage", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_not_to_be_trusted_is_not_used(stored, made, damage, words):
    where = stored.parent
    before = stored.read_bytes()
    damage(where)
    (warning,) = asked(KERNEL, OTHER, KERNEL)
    assert warning == f"portconv ignores {stored}: {words}; the kernel is compiled anew"
    assert made == ["avx2"] * 3
    assert cache.distrust(where) == words
    assert cache.entries() == []
    with pytest.raises(OSError, match=words):
        cache.clear()
    left = where if where.is_dir() else where.with_name("elsewhere")
    assert [path.read_bytes() for path in left.iterdir()] == [before]


@POSIX
def test_a_folder_below_a_file_cannot_be_made(tmp_path, made, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file" / "kernels"))
    (warning,) = asked(KERNEL, OTHER)
    assert "Not a directory" in warning
    assert made == ["avx2"] * 2


@pytest.mark.parametrize("fault", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_where_nothing_can_be_written_each_process_compiles(where, made, monkeypatch, fault):
    opened = os.open

    def refusing(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(fault, os.strerror(fault))
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    (warning,) = asked(KERNEL, OTHER, KERNEL)
    assert warning.startswith(f"portconv keeps no kernels in {where}: ")
    assert os.strerror(fault) in warning
    assert made == ["avx2"] * 3


def run(code: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", *options, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


BEGIN = f"""
from portconv.kernels import cache, target
from portconv.kernels.families import kernels
kernel, avx2 = kernels()[0], target.cross("avx2")
cache.compiled = lambda module, target: {OBJECT[:256]!r} * 64
"""


@POSIX
def test_a_disk_that_fills_while_a_file_is_written_leaves_nothing(where):
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for each in range(2):
    print(len(cache.object_of(kernel, avx2)))
"""
    out, errors = (process := run(BEGIN + code, **{cache.VARIABLE: str(where)})).communicate(timeout=60)
    assert (process.returncode, out) == (0, f"{len(OBJECT)}\n" * 2), errors
    assert errors.count("KernelCacheWarning") == 1
    assert "File too large" in errors
    assert [*where.iterdir()] == []


def test_an_interrupt_while_a_file_is_written_leaves_nothing(where, made, monkeypatch):
    def interrupted(path: Path, other: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.object_of(KERNEL, AVX2)
    assert [*where.iterdir()] == []


def test_processes_at_once_read_and_write_whole_files(where):
    code = """
path = cache.folder() / cache.file_name(kernel, avx2)
expected, made = cache.compiled(None, None), 0
for each in range(200):
    if each % 3 == 0:
        path.unlink(missing_ok=True)
    assert cache.object_of(kernel, avx2) == expected
"""
    processes = [run(BEGIN + code, "-W", "error", **{cache.VARIABLE: str(where)}) for _ in range(3)]
    assert [process.communicate(timeout=100)[1] for process in processes] == [""] * 3
    assert [path.name for path in where.iterdir()] == [cache.file_name(KERNEL, AVX2)]


def test_a_file_s_name_depends_on_all_that_an_object_does(monkeypatch):
    fields = {field: f"{value}0" if isinstance(value, str) else value + 1 for field, value in AVX2._asdict().items()}
    targets = [AVX2, *(AVX2._replace(**{field: value}) for field, value in fields.items())]
    names = [cache.file_name(kernel, each) for kernel in kernels() for each in targets]
    for field, value in (("__version__", "0.0"), ("sources", lambda: "others")):
        with monkeypatch.context() as patch:
            patch.setattr(cache, field, value)
            names.append(cache.file_name(KERNEL, AVX2))
    with monkeypatch.context() as patch:
        patch.setattr(cache.binding(), "llvm_version_info", (22, 0, 99))
        names.append(cache.file_name(KERNEL, AVX2))
    assert len({*names}) == len(names) == len(kernels()) * (1 + len(AVX2._fields)) + 3
    assert all(cache.NAME.fullmatch(name) for name in names)


def test_a_source_that_changes_makes_other_objects(tmp_path, monkeypatch):
    def sources() -> str:
        monkeypatch.setattr(cache, "IMPORTED", time.time_ns() + 10**9)
        return cache.sources.__wrapped__()

    for path in Path(cache.__file__).parent.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = sources()
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    assert sources() == before != ""
    with (tmp_path / "emit.py").open("a") as file:
        file.write("\n")
    assert sources() not in (before, "")


def test_without_the_sources_that_were_imported_nothing_is_read_or_written(tmp_path, monkeypatch, where, made):
    # Files that came later, and a package in an archive: nobody knows what an object would be good for.
    with monkeypatch.context() as patch:
        patch.setattr(cache, "IMPORTED", 10**18)
        assert cache.sources.__wrapped__() == ""
    with monkeypatch.context() as patch:
        patch.setattr(cache, "__file__", str(tmp_path / "archive.zip" / "cache.py"))
        assert cache.sources.__wrapped__() == ""
    monkeypatch.setattr(cache, "sources", str)
    assert asked(KERNEL, KERNEL) == []
    assert made == ["avx2"] * 2
    assert not where.exists()


@POSIX
def test_the_entries_say_what_is_there(stored, made, monkeypatch):
    where = stored.parent
    with monkeypatch.context() as patch:
        patch.setattr(cache, "__version__", "0.0")
        cache.object_of(KERNEL, AVX2)
    damaged = where / cache.file_name(OTHER, AVX2)
    damaged.write_bytes(b"nothing")
    (where / "notes.txt").write_text("mine")
    found = cache.entries()
    assert sorted((entry.state, entry.kernel, entry.target, entry.nbytes) for entry in found) == [
        ("current", str(KERNEL), "avx2 (haswell)", len(OBJECT)),
        ("damaged", "", "", 0),
        ("stale", str(KERNEL), "avx2 (haswell)", len(OBJECT)),
    ]
    assert [entry.path for entry in found if entry.state == "current"] == [stored]


@POSIX
def test_clearing_removes_the_cache_s_files_alone(stored, made):
    where = stored.parent
    damaged, link = (where / cache.file_name(OTHER, AVX2._replace(lanes=lanes)) for lanes in (2, 4))
    damaged.write_bytes(b"nothing")
    link.symlink_to(where / "notes.txt")
    (where / "notes.txt").write_text("mine")
    (where / "my.kernel").write_text("mine")
    left, being_written = (where / f".{stored.name}.{digit * 16}" for digit in "ab")
    for path in (left, being_written):
        path.write_bytes(b"nothing")
    os.utime(left, (1e9, 1e9))
    assert cache.clear() == 3
    assert {path.name for path in where.iterdir()} == {"notes.txt", "my.kernel", link.name, being_written.name}
    assert cache.clear() == 0


def test_a_kernel_from_the_cache_is_the_one_that_is_compiled(where):
    first = cache.object_of(KERNEL, AVX2)
    (path,) = where.iterdir()
    before = path.stat()
    assert cache.object_of(KERNEL, AVX2) == first
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.unlink()
    assert cache.object_of(KERNEL, AVX2) == first
    assert first.startswith(b"\x7fELF")
