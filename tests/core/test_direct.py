"""Writing past the page cache: what is written, what is noticed, and what is left to the usual way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from archiver.core import direct
from archiver.core.direct import BLOCK, DirectWriter, NotDirect, reopen
from tests.random_trees import noise

MIB = 1 << 20


class File:
    """An open file and its descriptor past the page cache."""

    def __init__(self, path: Path, size: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, size)
        try:
            self.direct = reopen(self.fd)
        except NotDirect:
            os.close(self.fd)
            pytest.skip("this file system has nothing past the page cache")

    def close(self) -> None:
        os.close(self.direct)
        os.close(self.fd)

    def contents(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    with closing(File(tmp_path / "file", 12 * MIB)) as file:
        yield file


@pytest.fixture
def writer() -> Iterator[DirectWriter]:
    with closing(DirectWriter()) as writer:
        yield writer


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("offset", [0, BLOCK, 3 * MIB + BLOCK])
@pytest.mark.parametrize("size", [BLOCK, MIB - BLOCK, MIB, MIB + BLOCK, 7 * MIB + 3 * BLOCK])
def test_what_is_written(file: File, writer: DirectWriter, size: int, offset: int, check: bool) -> None:
    before = noise(1, 12 * MIB)
    os.pwrite(file.fd, before, 0)
    data = noise(2, size)
    assert writer.write(file.direct, memoryview(data), offset, check=check)
    assert file.contents() == before[:offset] + data + before[offset + size :]


def test_several_in_a_row(file: File, writer: DirectWriter) -> None:
    """From memory that begins anywhere; neighbours that are no whole block come through the page cache."""
    data = noise(3, 12 * MIB)
    view = memoryview(b"x" * 7 + data)[7:]
    for start in range(100, len(data), 2 * MIB):
        end = min(start + 2 * MIB, len(data))
        first, last = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
        os.pwrite(file.fd, view[start:first], start)
        assert writer.write(file.direct, view[first:last], first, check=True)
        os.pwrite(file.fd, view[last:end], last)
    os.pwrite(file.fd, view[:100], 0)
    assert file.contents() == data


@pytest.mark.parametrize("place", [0, MIB + 77, 3 * MIB - 1])
def test_other_contents_are_noticed(
    file: File, writer: DirectWriter, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else is on the disk when it is read."""
    data = noise(4, 3 * MIB)
    original = DirectWriter._submit

    def submit(self: DirectWriter, operation: int, fd: int, slot: int, length: int, offset: int) -> int:
        if operation == direct._PREAD and offset <= place < offset + length:
            os.pwrite(file.fd, bytes([data[place] ^ 1]), place)
        return original(self, operation, fd, slot, length, offset)

    monkeypatch.setattr(DirectWriter, "_submit", submit)
    assert not writer.write(file.direct, memoryview(data), 0, check=True)


def test_what_was_not_read_is_noticed(file: File, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says it has read, and has not: what was written stands in the memory still."""
    original = DirectWriter._submit

    def submit(self: DirectWriter, operation: int, fd: int, slot: int, length: int, offset: int) -> int:
        if operation == direct._PREAD:  # the same bytes are written once more
            self._memory[slot, : length : direct.BLOCK] ^= 0xFF
            begun = original(self, direct._PWRITE, fd, slot, length, offset)
            self._memory[slot, : length : direct.BLOCK] ^= 0xFF
            return begun
        return original(self, operation, fd, slot, length, offset)

    monkeypatch.setattr(DirectWriter, "_submit", submit)
    assert not writer.write(file.direct, memoryview(noise(5, 2 * MIB)), 0, check=True)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EAGAIN])
@pytest.mark.parametrize("operation", [direct._PWRITE, direct._PREAD])
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("when", ["at once", "afterwards", "short"])
def test_failures(
    file: File,
    writer: DirectWriter,
    number: int,
    operation: int,
    count: int,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told when nothing is on its way any more, so that the memory can be used again."""
    calls, failing = 0, set[int]()
    submit, done = DirectWriter._submit, DirectWriter._done

    def submitted(self: DirectWriter, what: int, fd: int, slot: int, length: int, offset: int) -> int:
        nonlocal calls
        calls += what == operation
        if what == operation and calls == count:
            if when == "at once":
                return -number
            failing.add(slot)
        return submit(self, what, fd, slot, length, offset)

    def finished(self: DirectWriter) -> list[tuple[int, int]]:
        found = done(self)
        for place, (slot, _) in enumerate(found):
            if slot in failing:
                failing.remove(slot)
                found[place] = slot, -number if when == "afterwards" else BLOCK
        return found

    data = memoryview(noise(6, 8 * MIB))
    with monkeypatch.context() as patched:
        patched.setattr(DirectWriter, "_submit", submitted)
        patched.setattr(DirectWriter, "_done", finished)
        if when == "short" or number in (errno.EINVAL, errno.EAGAIN):
            with pytest.raises(NotDirect):
                writer.write(file.direct, data, 0, check=True)
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                writer.write(file.direct, data, 0, check=True)
    assert writer.write(file.direct, data, 0, check=True)
    assert file.contents()[: 8 * MIB] == data


def test_what_is_in_memory(file: File, writer: DirectWriter) -> None:
    writer.write(file.direct, memoryview(noise(7, 2 * MIB)), 0, check=True)
    assert not direct.is_cached(file.fd, MIB)
    os.pread(file.fd, 1, MIB)
    assert direct.is_cached(file.fd, MIB)


def test_where_there_is_no_such_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/proc/self/status", "rb") as file, pytest.raises(NotDirect):
        reopen(file.fileno())
    monkeypatch.setattr(direct, "_CALLS", {})
    with pytest.raises(NotDirect):
        DirectWriter()


def test_too_many_users_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(number: int, *arguments: object) -> int:
        return -errno.EAGAIN

    monkeypatch.setattr(direct, "_call", none_left)
    with pytest.raises(NotDirect):
        DirectWriter()
