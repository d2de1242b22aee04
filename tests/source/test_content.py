from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.source.content import (
    OpenFile,
    Replaced,
    data_extents,
    may_have_holes,
    open_file,
    read_into,
    unchanged,
)
from archiver.source.walk import SourceDirectory, Walk, WalkOptions

Change = Callable[[Path], None]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[SourceDirectory]:
    with Walk(os.fsencode(tmp_path), WalkOptions(), lambda problem: None) as walk:
        yield walk.open_root()


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def test_open_a_listed_file(directory: SourceDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    before = len(os.listdir("/proc/self/fd"))
    with open_file(directory, directory.look(b"file")) as file:
        assert file.stat.st_size == 8
        assert os.read(file.fd, 100) == b"contents"
        assert not os.get_inheritable(file.fd)
    assert file.fd == -1
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_leaves_the_access_time(directory: SourceDirectory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    os.utime(path, ns=(1, 2))
    with open_file(directory, directory.look(b"file")) as file:
        assert read_into(file.fd, memoryview(bytearray(8)), 0) == 8
    assert path.stat().st_atime_ns == 1


def test_a_file_that_vanished(directory: SourceDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    entry = directory.look(b"file")
    (tmp_path / "file").unlink()
    with pytest.raises(FileNotFoundError):
        open_file(directory, entry)


def replace_by_file(path: Path) -> None:
    (path.parent / "new").write_bytes(b"another file")
    (path.parent / "new").rename(path)


def replace_by_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_socket(path: Path) -> None:
    path.unlink()
    place = os.open(path.parent, os.O_RDONLY)  # sun_path is short
    socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{place}/{path.name}")
    os.close(place)


@pytest.mark.parametrize(
    "replace", [replace_by_file, replace_by_symlink, replace_by_fifo, replace_by_directory, replace_by_socket]
)
def test_a_name_that_now_belongs_to_something_else(replace: Change, directory: SourceDirectory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"the listed file")
    other_name = tmp_path / "keeps the inode in use"
    other_name.hardlink_to(path)
    entry = directory.look(b"file")
    replace(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Replaced) as caught:
        open_file(directory, entry)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ESTALE
    assert len(os.listdir("/proc/self/fd")) == before
    if replace is replace_by_file:
        with open_file(directory, directory.look(b"file")) as file:
            assert os.read(file.fd, 100) == b"another file"


def test_a_lease_holder_is_asked_to_let_go(directory: SourceDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    lease = os.open(tmp_path / "file", os.O_RDWR)
    previous = signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK))
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with open_file(directory, directory.look(b"file")) as file:
            assert os.read(file.fd, 100) == b"contents"
    finally:
        os.close(lease)
        signal.signal(signal.SIGIO, previous)


def test_read_into_reads_all_or_to_the_end(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    os.write(fd, bytes(range(250)))
    buffer = bytearray(b"\xff" * 300)
    view = memoryview(buffer)
    assert read_into(fd, view[:100], 0) == 100
    assert read_into(fd, view[100:], 100) == 150
    assert buffer == bytes(range(250)) + b"\xff" * 50
    assert read_into(fd, view, 250) == 0
    assert read_into(fd, view[:0], 0) == 0
    os.close(fd)


def test_read_into_goes_on_after_short_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = opened(tmp_path / "file")
    os.write(fd, bytes(range(250)))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:7]], offset))
    buffer = bytearray(300)
    assert read_into(fd, memoryview(buffer), 0) == 250
    assert buffer[:250] == bytes(range(250))
    assert read_into(fd, memoryview(buffer)[:200], 50) == 200
    os.close(fd)


def test_a_read_survives_signals(tmp_path: Path) -> None:
    hits = []
    previous = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    fd = opened(tmp_path / "file")
    os.truncate(fd, 64 << 20)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        buffer = bytearray(1 << 20)
        for offset in range(0, 64 << 20, 1 << 20):
            assert read_into(fd, memoryview(buffer), offset) == 1 << 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        os.close(fd)
    assert hits


def test_a_read_error_is_raised(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        read_into(fd, memoryview(bytearray(10)), 0)
    os.close(fd)


def change_by_append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def change_by_truncate(path: Path) -> None:
    os.truncate(path, 3)


def change_in_place(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"X")


def change_in_place_and_hide_it(path: Path) -> None:
    stat = path.stat()
    change_in_place(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [change_by_append, change_by_truncate, change_in_place, change_in_place_and_hide_it])
def test_changes_while_read_are_seen(change: Change, directory: SourceDirectory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    threading.Event().wait(0.02)  # the kernel's clock for files ticks every 1 to 10 ms
    with open_file(directory, directory.look(b"file")) as file:
        os.read(file.fd, 4)
        assert unchanged(file.stat, file.fd)
        change(path)
        assert not unchanged(file.stat, file.fd)


def test_a_file_that_shrinks_ends_early(directory: SourceDirectory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    with open_file(directory, directory.look(b"file")) as file:
        os.truncate(path, 1_000)
        assert read_into(file.fd, memoryview(bytearray(file.stat.st_size)), 0) == 1_000


BLOCK = 4096


@settings(max_examples=40, deadline=None)
@given(layout=some.lists(some.booleans(), max_size=12), tail=some.integers(0, BLOCK - 1))
def test_extents_give_back_the_contents(
    layout: list[bool], tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fd = opened(tmp_path_factory.mktemp("sparse") / "file")
    expected = bytearray()
    for number, written in enumerate(layout):
        if written:
            os.pwrite(fd, b"d" * BLOCK, number * BLOCK)
        expected += (b"d" if written else b"\0") * BLOCK
    expected += bytes(tail)
    size = len(expected)
    os.truncate(fd, size)
    position = 0
    found = bytearray()
    for offset, length, is_data in data_extents(fd, size):
        assert offset == position
        assert length > 0
        piece = bytearray(length)
        if is_data:
            assert read_into(fd, memoryview(piece), offset) == length
        found += piece
        position += length
    assert position == size
    assert found == expected
    os.close(fd)


def test_holes_cost_no_reads(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    os.truncate(fd, 1 << 40)
    os.pwrite(fd, b"d" * BLOCK, 1 << 30)
    assert may_have_holes(os.fstat(fd))
    extents = list(data_extents(fd, 1 << 40))
    assert [is_data for *_, is_data in extents] == [False, True, False]
    assert sum(length for _, length, is_data in extents if is_data) < 1 << 20
    os.close(fd)


def test_a_full_file_is_one_extent(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    os.write(fd, b"d" * (BLOCK * 4))
    os.fsync(fd)
    assert not may_have_holes(os.fstat(fd))
    assert list(data_extents(fd, BLOCK * 4)) == [(0, BLOCK * 4, True)]
    assert list(data_extents(fd, 0)) == []
    os.close(fd)


def test_a_file_that_shrank_or_grew_since(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    os.write(fd, b"d" * BLOCK)
    assert list(data_extents(fd, 3 * BLOCK)) == [(0, BLOCK, True), (BLOCK, 2 * BLOCK, False)]
    assert list(data_extents(fd, BLOCK // 2)) == [(0, BLOCK // 2, True)]
    os.close(fd)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_tell(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, position: int, whence: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "lseek", refuse)
    assert list(data_extents(0, 1000)) == [(0, 1000, True)]


def test_a_file_system_that_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, position: int, whence: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lseek", fail)
    with pytest.raises(OSError, match="Input/output"):
        list(data_extents(0, 1000))


def test_an_answer_that_makes_no_progress_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lseek", lambda fd, position, whence: position)
    assert list(data_extents(0, 1000)) == [(0, 1000, True)]


def test_an_open_file_closes_once(tmp_path: Path) -> None:
    fd = opened(tmp_path / "file")
    file = OpenFile(fd, os.fstat(fd))
    file.close()
    other = os.dup(0)  # likely the same number
    file.close()
    os.fstat(other)
    os.close(other)
