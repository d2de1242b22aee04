"""Files that are not in memory are fetched ahead of the reader; what is read is right whatever the kernel says."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from archiver.source import ahead
from archiver.source.ahead import ReadAhead
from archiver.source.walk import SourceDirectory, Walk, WalkOptions

COUNT = 200
NAMES = [b"%03d" % number for number in range(COUNT)]


def contents(number: int) -> bytes:
    return b"%d " % number * 100


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceDirectory]:
    monkeypatch.setattr(ahead, "_blocking", set())
    for number, name in enumerate(NAMES):
        (tmp_path / os.fsdecode(name)).write_bytes(contents(number))
    with Walk(os.fsencode(tmp_path), WalkOptions(), lambda problem: None) as walk:
        yield walk.open_root()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that the kernel was told to fetch, as they come."""
    names: list[bytes] = []
    real = os.posix_fadvise

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED and offset == 0
        names.append(os.path.basename(os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))))
        real(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return names


def answer(monkeypatch: pytest.MonkeyPatch, number: int | None, *, at_once: int = 0) -> list[int]:
    """Reads without waiting bring ``at_once`` bytes, and with none the error ``number``. Their count, in a list."""
    asked = [0]
    real = os.preadv

    def preadv(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        if flags == os.RWF_NOWAIT:
            asked[0] += 1
            if number is not None and not at_once:
                raise OSError(number, os.strerror(number))
            return real(fd, [memoryview(buffers[0])[:at_once]], offset)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    return asked


def read(files: ReadAhead, directory: SourceDirectory, number: int, size: int | None = None) -> bytes | None:
    view = memoryview(bytearray(len(contents(number)) if size is None else size))
    fd = os.open(NAMES[number], os.O_RDONLY, dir_fd=directory.fd)
    try:
        done = files.read(NAMES[number], fd, view, os.fstat(fd).st_dev)
    finally:
        os.close(fd)
    return bytes(view) if done else None


def test_nothing_is_fetched_while_files_are_in_memory(directory: SourceDirectory, fetched: list[bytes]) -> None:
    files = ReadAhead(directory, NAMES)
    assert all(read(files, directory, number) == contents(number) for number in range(COUNT))
    if directory.features.device not in ahead._blocking:  # of some file systems nobody knows what is in memory
        assert fetched == []


def test_the_following_ones_are_fetched_once(
    directory: SourceDirectory, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, errno.EAGAIN)
    files = ReadAhead(directory, NAMES)
    assert read(files, directory, 0) == contents(0)
    assert fetched == NAMES[1:64]
    for number in range(1, COUNT):
        assert read(files, directory, number) == contents(number)
        assert fetched == NAMES[1 : min(number + 64, COUNT)]


def test_those_that_were_passed_are_not_fetched(
    directory: SourceDirectory, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, errno.EAGAIN)
    assert read(ReadAhead(directory, NAMES), directory, 150) == contents(150)
    assert fetched == NAMES[151:]


def test_only_regular_files_are_opened(
    directory: SourceDirectory, tmp_path: Path, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("001", "002", "003", "004"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "001")
    (tmp_path / "002").symlink_to("010")
    (tmp_path / "003").mkdir()
    (tmp_path / "004").touch()
    answer(monkeypatch, errno.EAGAIN)
    stats: list[os.stat_result | None] = [os.lstat(tmp_path / os.fsdecode(name)) for name in NAMES[:9]]
    stats[5] = None
    assert read(ReadAhead(directory, NAMES[:9], stats), directory, 0) == contents(0)
    assert fetched == NAMES[6:9]


def test_what_is_gone_or_forbidden_is_left_to_the_reader(
    directory: SourceDirectory, tmp_path: Path, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "001").unlink()
    (tmp_path / "002").unlink()
    (tmp_path / "002").symlink_to("010")
    answer(monkeypatch, errno.EAGAIN)
    before = len(os.listdir("/proc/self/fd"))
    assert read(ReadAhead(directory, NAMES[:5]), directory, 0) == contents(0)
    assert fetched == NAMES[3:5] and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("at_once", [1, 100, 199])
def test_a_file_of_which_a_part_is_in_memory(
    directory: SourceDirectory, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    answer(monkeypatch, None, at_once=at_once)
    assert read(ReadAhead(directory, NAMES[:3]), directory, 0) == contents(0)
    assert fetched == NAMES[1:3]


@pytest.mark.parametrize("at_once", [0, 100])
def test_a_file_that_is_shorter(directory: SourceDirectory, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    answer(monkeypatch, errno.EAGAIN, at_once=at_once)
    assert read(ReadAhead(directory, NAMES), directory, 0, len(contents(0)) + 1) is None


def test_a_file_system_that_cannot_tell_is_asked_once(
    directory: SourceDirectory, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, errno.EOPNOTSUPP)
    files = ReadAhead(directory, NAMES)
    assert all(read(files, directory, number) == contents(number) for number in range(COUNT))
    assert asked == [1] and fetched == []


def test_a_python_that_cannot_ask(
    directory: SourceDirectory, fetched: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made for a C library of before 2017, so that it runs everywhere."""
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    found = importlib.util.find_spec(ahead.__name__)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    files = module.ReadAhead(directory, NAMES)
    assert all(read(files, directory, number) == contents(number) for number in range(COUNT))
    assert fetched == []


def test_errors_are_the_readers(directory: SourceDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        read(ReadAhead(directory, NAMES), directory, 0)


def test_files_that_are_on_the_disk_only(directory: SourceDirectory, tmp_path: Path) -> None:
    for name in NAMES:
        with open(tmp_path / os.fsdecode(name), "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    files = ReadAhead(directory, NAMES)
    assert all(read(files, directory, number) == contents(number) for number in range(COUNT))
