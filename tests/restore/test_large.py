"""Large pieces of files go past the page cache: what comes back is the same, and what goes wrong there is told."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from archiver.backup.run import Mode
from archiver.core.direct import _PREAD, BLOCK, DirectWriter, NotDirect, reopen
from archiver.errors import ArchiverError, NoSpace
from archiver.restore import large, write
from archiver.restore.large import LargePieces
from archiver.restore.reread import Rereader
from archiver.restore.visitor import FileItem, Piece
from tests.compare import differences
from tests.random_trees import noise
from tests.restore.test_reread import brought_back
from tests.stores import KEY, make_store, save

CHUNK = 64 << 10
MIB = 1 << 20
LARGE = {b"/one", b"/other"}  # files without holes


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "FILES_FROM", 1 * MIB)
    monkeypatch.setattr(write, "FILES_FROM", 1 * MIB)
    monkeypatch.setattr(large, "_PIECES_FROM", 8 << 10)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(noise(1, 3 * MIB + 123))
    (source / "other").write_bytes(noise(2, 1 * MIB))
    (source / "other").chmod(0o444)
    (source / "small").write_bytes(noise(3, 5000))
    with (source / "sparse").open("wb") as file:
        file.truncate(2 * MIB)
        for number in range(0, 400, 7):
            os.pwrite(file.fileno(), noise(number, 3000), number * 5000)
    return source


class Written:
    """What goes past the page cache; the call ``failing`` and later ones raise ``error``, or find something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.bytes = 0
        self.checked = set[bool]()
        self.failing = 1 << 60
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._original = DirectWriter.write
        written = self

        def write(self: DirectWriter, fd: int, data: memoryview, offset: int, *, check: bool) -> bool:
            return written(self, fd, data, offset, check)

        monkeypatch.setattr(DirectWriter, "write", write)

    def __call__(self, writer: DirectWriter, fd: int, data: memoryview, offset: int, check: bool) -> bool:
        with self._lock:
            self.calls += 1
            self.checked.add(check)
            fails = self.calls >= self.failing
        if fails and self.error is not None:
            raise self.error
        is_same = self._original(writer, fd, data, offset, check=check)
        with self._lock:
            self.bytes += len(data)
        return is_same and not fails


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Written:
    try:
        with (tmp_path / "probe").open("w+b") as file:
            os.close(reopen(file.fileno()))
    except NotDirect:
        pytest.skip("this file system has nothing past the page cache")
    return Written(monkeypatch)


def cached(path: Path) -> float:
    """How much of a file is in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        pages = bytearray(-(-len(memory) // mmap.PAGESIZE))
        address = np.frombuffer(memory, np.uint8).ctypes.data
        vector = (ctypes.c_ubyte * len(pages)).from_buffer(pages)
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), vector) == 0
        return sum(page & 1 for page in pages) / len(pages)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_it_comes_back(source: Path, tmp_path: Path, mode: Mode, verify: bool, written: Written) -> None:
    path = make_store(tmp_path / "store")
    save(path, source, mode=mode, crypt=KEY, chunk_size=CHUNK)
    assert brought_back(path, tmp_path / "target", verify=verify) == []
    assert 3 * MIB < written.bytes < 5 * MIB and written.checked == {verify}
    if not verify:  # of what is compared the kernel reads more than it is asked for
        assert cached(tmp_path / "target" / "one") < 1 / 4
    assert differences(source, tmp_path / "target") == []
    assert (tmp_path / "target" / "sparse").stat().st_blocks <= (source / "sparse").stat().st_blocks + 16


@pytest.mark.parametrize("failing", [1, 20])
def test_other_contents_are_told_once(source: Path, tmp_path: Path, failing: int, written: Written) -> None:
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    written.failing = failing
    told = brought_back(path, tmp_path / "target")
    assert {problem.kind for problem in told} == {"different"}
    counts = Counter(problem.path for problem in told)
    assert set(counts.values()) == {1} and b"/one" in counts.keys() <= LARGE
    assert failing > 1 or counts.keys() == LARGE


def flip(fd: int, offset: int) -> None:
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(other, bytes([os.pread(other, 1, offset)[0] ^ 1]), offset)
    os.close(other)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("number", [1, 7])
def test_what_the_disk_has_is_compared(
    source: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte is another one when it is read."""
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    reads = itertools.count(1)
    original = DirectWriter._submit

    def submit(self: DirectWriter, operation: int, fd: int, slot: int, length: int, offset: int) -> int:
        if operation == _PREAD and next(reads) == number:
            flip(fd, offset + length - 1)
        return original(self, operation, fd, slot, length, offset)

    monkeypatch.setattr(DirectWriter, "_submit", submit)
    (told,) = brought_back(path, tmp_path / "target")
    assert told.kind == "different" and told.path in LARGE


@pytest.mark.usefixtures("written")
def test_what_lies_between_is_compared(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of blocks, which go the usual way."""
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    original = Rereader._bring_to_disk
    flipped: list[int] = []

    def bring(self: Rereader, contents: Sequence[tuple[FileItem, Piece]]) -> None:
        original(self, contents)
        for item, piece in contents:
            if item.name == b"one" and piece.length < BLOCK and not flipped:
                flip(item.fd, piece.offset + piece.length - 1)
                flipped.append(piece.length)

    monkeypatch.setattr(Rereader, "_bring_to_disk", bring)
    (told,) = brought_back(path, tmp_path / "target")
    assert flipped and (told.kind, told.path) == ("different", b"/one")


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_told_at_a_close(source: Path, tmp_path: Path, verify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems over the network say then that the disk is full."""
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    original = LargePieces.close_file

    def close(self: LargePieces, item: FileItem) -> None:
        was_open = item.direct >= 0
        original(self, item)
        if was_open:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(LargePieces, "close_file", close)
    with pytest.raises(NoSpace, match=str(tmp_path / "target")):
        brought_back(path, tmp_path / "target", verify=verify)
    assert not any(
        file.name in ("one", "other") or ".archiver" in file.name for file in (tmp_path / "target").rglob("*")
    )


@pytest.mark.parametrize("failing", [1, 2, 15])
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_refused_goes_the_usual_way(
    source: Path, tmp_path: Path, failing: int, verify: bool, written: Written
) -> None:
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    written.failing, written.error = failing, NotDirect()
    assert brought_back(path, tmp_path / "target", verify=verify) == []
    assert differences(source, tmp_path / "target") == []
    assert failing <= written.calls <= failing + 4  # for each file one of each thread


def test_what_went_through_memory_all_the_same_is_read_from_the_disk(
    source: Path, tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the usual way, which is told of all that was written."""
    monkeypatch.setattr(large, "is_cached", lambda fd, offset: True)
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    compared = Counter[bytes]()
    original = Rereader.written

    def record(self: Rereader, item: FileItem, offset: int, data: memoryview) -> None:
        compared[item.name] += len(data)
        original(self, item, offset, data)

    monkeypatch.setattr(Rereader, "written", record)
    assert brought_back(path, tmp_path / "target") == [] and differences(source, tmp_path / "target") == []
    assert written.calls <= 6  # for each file one of each thread
    for name in LARGE:
        assert compared[name.lstrip(b"/")] == (source / os.fsdecode(name.lstrip(b"/"))).stat().st_size


@pytest.mark.parametrize("failing", [1, 15])
@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, NoSpace), (errno.EIO, ArchiverError)])
def test_a_disk_that_fails(
    source: Path, tmp_path: Path, failing: int, number: int, expected: type[Exception], written: Written
) -> None:
    """Nothing is left of a file that is not complete; the next run has all."""
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    written.failing, written.error = failing, OSError(number, os.strerror(number))
    with pytest.raises(expected):
        brought_back(path, tmp_path / "target")
    for file in (tmp_path / "target").rglob("*"):
        assert not file.is_file() or file.read_bytes() == (source / file.name).read_bytes()


def test_nobody_waits_for_a_slow_disk_without_a_reason(
    source: Path, tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "_MEASURED", 256 << 10)
    monkeypatch.setattr(large, "_SLOW", 1 << 50)
    path = make_store(tmp_path / "store")
    save(path, source, chunk_size=CHUNK)
    assert brought_back(path, tmp_path / "target", verify=False) == []
    assert 256 << 10 <= written.bytes < 1 * MIB
    assert differences(source, tmp_path / "target") == []
    written.bytes = 0
    assert brought_back(path, tmp_path / "verified") == []
    assert written.bytes > 3 * MIB
