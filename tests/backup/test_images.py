"""Disk images and small files: what is read, what is stored, what is taken over from the snapshot before."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from archiver.backup import blobs, images
from archiver.backup.run import CryptMode, Mode
from archiver.browse.snapshot import Snapshot
from archiver.core.clock import Clock
from archiver.core.row import file_row
from archiver.errors import ArchiverError, UsageError
from archiver.source import image as source_image
from archiver.source.content import read_into
from archiver.store.database import records
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, chunk_digest
from formats.index import FixedIndex
from formats.manifest import Manifest
from tests.compare import differences
from tests.random_trees import build_plain
from tests.store.collecting import gc, make_old
from tests.stores import (
    CHUNK_SIZE,
    GROUP,
    KEY,
    Heard,
    Saved,
    bring_back,
    chunk_files,
    damage,
    every_snapshot,
    make_store,
    new_chunks,
    save,
)

KIB = 1 << 10
SIZE = 3_000_001
MODES: list[tuple[CryptConfig | None, CryptMode]] = [(None, "none"), (KEY, "encrypt"), (KEY, "sign-only")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def sparse(path: Path, seed: int = 1, size: int = SIZE) -> bytes:
    """A file with holes, zeros that are written, data, and an odd size; its contents."""
    data, rng = bytearray(size), random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), bytes(200 * KIB), 600_000)
        for start in range(123_457, size, 900_000):
            piece = rng.randbytes(min(300 * KIB, size - start))
            data[start : start + len(piece)] = piece
            os.pwrite(file.fileno(), piece, start)
    return bytes(data)


def manifest_of(path: Path, ref: SnapshotRef, crypt: CryptConfig | None = None) -> Manifest:
    with Store.open(path, read_only=True) as store:
        return Snapshot(store, ref, crypt).manifest


def index_of(path: Path, ref: SnapshotRef) -> FixedIndex:
    return FixedIndex.decode((path / ref.path / "disk.img.fidx").read_bytes())


def check(path: Path, saved: Saved, data: bytes, target: Path, crypt: CryptConfig | None = None) -> None:
    """The index is that of ``data``, the manifest's entry is right, and the data comes back."""
    index = index_of(path, saved.snapshot)
    entry = manifest_of(path, saved.snapshot, crypt).file("disk.img.fidx")
    assert entry is not None and (entry.size, entry.csum) == (len(data), index.csum()) and index.size == len(data)
    key = crypt if entry.crypt_mode == "encrypt" else None
    chunks = [data[at : at + index.chunk_size] for at in range(0, len(data), index.chunk_size)]
    assert [index.digest(number) for number in range(len(index))] == [chunk_digest(chunk, key) for chunk in chunks]
    bring_back(path, saved.snapshot, target, crypt=crypt, archives=["disk.img"])
    assert target.read_bytes() == data
    target.unlink()


@pytest.mark.parametrize(("crypt", "mode"), MODES)
def test_images_beside_trees(
    store: Path, disk: Path, tmp_path: Path, crypt: CryptConfig | None, mode: CryptMode
) -> None:
    data = sparse(disk)
    build_plain(tmp_path / "tree", 3, files=20)
    (tmp_path / "fstab").write_bytes(b"/dev/sda1 /\n" * 100)
    sources = {
        "tree": tmp_path / "tree",
        "disk.img": disk,
        "fstab.conf": tmp_path / "fstab",
        "x.log": tmp_path / "fstab",
    }
    saved = save(store, sources, crypt=crypt, crypt_mode=mode)
    found = {file.filename: file for file in manifest_of(store, saved.snapshot, crypt).files}
    wanted = ["tree.ppxar.didx", "tree.mpxar.didx", "disk.img.fidx", "fstab.conf.blob", "x.log.blob"]
    assert list(found) == wanted and {file.crypt_mode for file in found.values()} == {mode}
    check(store, saved, data, tmp_path / "out", crypt)
    stored = (store / saved.snapshot.path / "fstab.conf.blob").read_bytes()
    assert (len(stored), sha256(stored).digest()) == (found["fstab.conf.blob"].size, found["fstab.conf.blob"].csum)
    assert blob.inspect(stored).encrypted == (mode == "encrypt")
    bring_back(store, saved.snapshot, tmp_path / "out", crypt=crypt, archives=["fstab.conf"])
    assert (tmp_path / "out").read_bytes() == (tmp_path / "fstab").read_bytes()
    bring_back(store, saved.snapshot, tmp_path / "whole", crypt=crypt)
    assert differences(tmp_path / "tree", tmp_path / "whole") == []
    assert damage(store, crypt) == [] and saved.result.files.total == 20 + 3


def test_what_is_counted(store: Path, disk: Path, tmp_path: Path) -> None:
    data = sparse(disk)
    saved = save(store, {"disk.img": disk})
    (image,) = saved.result.archives
    counters = image.counters
    zero = chunk_digest(bytes(CHUNK_SIZE), None)
    digests = [index_of(store, saved.snapshot).digest(number) for number in range(counters.chunks)]
    assert counters.size == len(data) and counters.chunks == -(-len(data) // CHUNK_SIZE)
    assert digests.count(zero) > 10 and counters.new_chunks == len(set(digests)) == len(chunk_files(store))
    assert saved.result.files.bytes_read < len(data) - (1 << 20), "holes are not read"
    assert (saved.result.files.total, saved.result.files.reencoded, saved.result.errors) == (1, 1, [])


@pytest.mark.parametrize("chunk_size", [64 << 10, 1 << 20, 4 << 20])
@pytest.mark.parametrize("size", [1, 64 << 10, (64 << 10) + 1, 4 << 20, (5 << 20) - 1, 12 << 20])
def test_sizes(store: Path, disk: Path, tmp_path: Path, size: int, chunk_size: int) -> None:
    data = random.Random(size).randbytes(size)
    disk.write_bytes(data)
    saved = save(store, {"disk.img": disk}, chunk_size=chunk_size)
    assert index_of(store, saved.snapshot).chunk_size == chunk_size
    check(store, saved, data, tmp_path / "out")


@pytest.mark.parametrize("mode", ["metadata", "data", "legacy"])
def test_modes(store: Path, disk: Path, tmp_path: Path, mode: Mode) -> None:
    """They are those of trees; without one there is no catalog."""
    data = sparse(disk)
    saved = save(store, {"disk.img": disk}, mode=mode)
    assert [file.filename for file in manifest_of(store, saved.snapshot).files] == ["disk.img.fidx"]
    check(store, saved, data, tmp_path / "out")
    build_plain(tmp_path / "tree", 3, files=5)
    mixed = save(store, {"disk.img": disk, "tree": tmp_path / "tree"}, mode=mode)
    check(store, mixed, data, tmp_path / "out")
    bring_back(store, mixed.snapshot, tmp_path / "whole")
    assert differences(tmp_path / "tree", tmp_path / "whole") == []


@pytest.mark.parametrize("size", [8 << 20, (8 << 20) + 5, 100])
def test_nothing_but_a_hole(store: Path, disk: Path, tmp_path: Path, size: int) -> None:
    disk.touch()
    os.truncate(disk, size)
    saved = save(store, {"disk.img": disk})
    assert saved.result.files.bytes_read == 0 and new_chunks(saved) <= 2
    check(store, saved, bytes(size), tmp_path / "out")


def test_a_huge_hole(store: Path, disk: Path, tmp_path: Path) -> None:
    """Sixteen million chunks would take minutes one by one; here are enough to tell."""
    disk.touch()
    os.truncate(disk, 1 << 40)
    with open(disk, "r+b") as file:
        file.seek(1 << 39)
        file.write(b"here")
    saved = save(store, {"disk.img": disk}, chunk_size=4 << 20)
    assert saved.result.archives[0].counters.chunks == 1 << 18 and new_chunks(saved) == 2
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size == 1 << 40 and (tmp_path / "out").stat().st_blocks < 1000
    with open(tmp_path / "out", "rb") as file:
        file.seek(1 << 39)
        assert file.read(4) == b"here"


def test_changed_chunks_only(store: Path, disk: Path, tmp_path: Path) -> None:
    """All is read, what is there already is not stored again."""
    data = bytearray(sparse(disk))
    save(store, {"disk.img": disk})
    with open(disk, "r+b") as file:
        file.seek(124_000)
        file.write(b"changed")
    data[124_000:124_007] = b"changed"
    saved = save(store, {"disk.img": disk}, mode="metadata")
    assert new_chunks(saved) == 1 and saved.result.archives[0].counters.reused_chunks == 0
    check(store, saved, bytes(data), tmp_path / "out")


@pytest.mark.parametrize(("crypt", "mode"), MODES)
def test_unchanged_file_is_not_read(
    store: Path, disk: Path, tmp_path: Path, crypt: CryptConfig | None, mode: CryptMode
) -> None:
    data = sparse(disk)
    first = save(store, {"disk.img": disk}, crypt=crypt, crypt_mode=mode, mode="metadata")
    saved = save(store, {"disk.img": disk}, crypt=crypt, crypt_mode=mode, mode="metadata")
    counters = saved.result.archives[0].counters
    assert saved.result.files.bytes_read == 0 and saved.result.files.unchanged == 1
    assert (counters.reused_chunks, counters.reused_bytes) == (counters.chunks, len(data))
    check(store, saved, data, tmp_path / "out", crypt)
    assert index_of(store, first.snapshot).csum() == index_of(store, saved.snapshot).csum()
    third = save(store, {"disk.img": disk}, crypt=crypt, crypt_mode=mode, mode="metadata")
    assert third.result.files.bytes_read == 0, "known from the second one"


def _nothing(store: Path, disk: Path) -> None:
    """Nothing happens."""


def _touched(store: Path, disk: Path) -> None:
    os.utime(disk, ns=(0, 10**18))


def _replaced(store: Path, disk: Path) -> None:
    other = disk.with_name("other")
    other.write_bytes(disk.read_bytes())
    status = disk.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(disk)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (_touched, {}),
        (_replaced, {}),
        (_nothing, {"mode": "data"}),
        (_nothing, {"audit": 1.0}),
        (_nothing, {"compare": "metadata"}),
        (_nothing, {"chunk_size": 128 << 10}),
        (_nothing, {"crypt": KEY}),
    ],
)
def test_read_again(
    store: Path, disk: Path, tmp_path: Path, change: Callable[[Path, Path], None], options: dict[str, object]
) -> None:
    data = sparse(disk)
    save(store, {"disk.img": disk}, mode="metadata")
    change(store, disk)
    saved = save(store, {"disk.img": disk}, **({"mode": "metadata"} | options))  # type: ignore[arg-type]
    assert saved.result.files.bytes_read > 0 and saved.result.files.unchanged == 0
    check(store, saved, data, tmp_path / "out", KEY if "crypt" in options else None)


def test_file_of_this_moment_is_read_again(store: Path, disk: Path) -> None:
    sparse(disk)
    for _ in range(2):
        saved = save(store, {"disk.img": disk}, mode="metadata", clock=Clock())
        assert saved.result.files.bytes_read > 0


def test_without_what_the_database_knew(store: Path, disk: Path, tmp_path: Path) -> None:
    data = sparse(disk)
    save(store, {"disk.img": disk}, mode="metadata")
    with Store.open(store) as opened:
        opened.rebuild_database()
    saved = save(store, {"disk.img": disk}, mode="metadata")
    assert saved.result.files.bytes_read > 0 and new_chunks(saved) == 0
    check(store, saved, data, tmp_path / "out")


def test_snapshot_between_was_forgotten(store: Path, disk: Path, tmp_path: Path) -> None:
    """What is known is of a snapshot that is no more: the newest one may be of another image."""
    sparse(disk)
    first = save(store, {"disk.img": disk}, mode="metadata")
    other = tmp_path / "other"
    sparse(other, seed=2)
    save(store, {"disk.img": other}, mode="metadata")
    data = sparse(disk, seed=3)
    save(store, {"disk.img": disk}, mode="metadata", group=GROUP)
    with Store.open(store) as opened:
        newest = every_snapshot(opened)[-1]
    for file in (store / newest.path).iterdir():
        file.unlink()
    (store / newest.path).rmdir()
    saved = save(store, {"disk.img": disk}, mode="metadata")
    assert saved.result.files.bytes_read > 0 and first.snapshot < saved.snapshot
    check(store, saved, data, tmp_path / "out")


def test_lost_chunks_are_read_from_the_file(store: Path, disk: Path, tmp_path: Path) -> None:
    data = sparse(disk)
    save(store, {"disk.img": disk}, mode="metadata")
    lost = random.Random(4).sample(chunk_files(store), 3)
    for file in lost:
        file.unlink()
    saved = save(store, {"disk.img": disk}, mode="metadata")
    counters = saved.result.archives[0].counters
    assert counters.new_chunks == 3 and counters.reused_chunks > 20
    assert 0 < saved.result.files.bytes_read < len(data) / 2 or chunk_digest(bytes(CHUNK_SIZE), None).hex() in {
        file.name for file in lost
    }
    check(store, saved, data, tmp_path / "out")
    assert damage(store) == []


def test_what_is_known_is_sealed(store: Path, disk: Path) -> None:
    """Of a file behind an encrypted image the database tells nothing without the key."""
    sparse(disk)
    for crypt, is_plain in ((KEY, False), (None, True)):
        save(store, {"disk.img": disk}, mode="metadata", crypt=crypt)
        with Store.open(store) as opened:
            database = opened.database
            assert database is not None
            found = [database.get(records.META, key) or b"" for key in database.keys(records.META, b"image")]
        assert any(file_row(disk.stat()) in value for value in found) == is_plain


# What happens to a source while it is read.


def interfere(monkeypatch: pytest.MonkeyPatch, after: int, what: Callable[[], object]) -> None:
    """``what`` happens once, when more than ``after`` bytes were read."""
    read = source_image.Source.read_into
    done: list[object] = []

    def read_into(self: source_image.Source, view: memoryview, offset: int) -> int:
        if offset >= after and not done:
            done.append(what())
        return read(self, view[: 256 << 10], offset)

    monkeypatch.setattr(source_image.Source, "read_into", read_into)


def test_source_that_shrinks(store: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(5).randbytes(SIZE)
    disk.write_bytes(data)
    interfere(monkeypatch, 1 << 20, lambda: os.truncate(disk, 2_000_000))
    saved = save(store, {"disk.img": disk}, mode="metadata")
    assert [error.reason for error in saved.result.errors] == ["changed while it was read"]
    assert saved.result.files.torn == 1 and (store / saved.snapshot.path / "client.log.blob").exists()
    check(store, saved, data[:2_000_000] + bytes(1_000_001), tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert save(store, {"disk.img": disk}, mode="metadata").result.files.bytes_read > 0, "a torn one is not known"


def test_source_that_grows(store: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(6).randbytes(SIZE)
    disk.write_bytes(data)

    def grow() -> None:
        with open(disk, "ab") as file:
            file.write(bytes(100_000))

    interfere(monkeypatch, 1 << 20, grow)
    saved = save(store, {"disk.img": disk})
    assert [error.path for error in saved.result.errors] == [b"disk.img"]
    check(store, saved, data, tmp_path / "out")


def bad_places(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], number: int = errno.EIO) -> None:
    """Sectors that ``bad`` tells of cannot be read."""
    preadv = os.preadv

    def read(fd: int, buffers: list[memoryview], offset: int) -> int:
        if any(map(bad, range(offset // 4096, (offset + len(buffers[0]) - 1) // 4096 + 1))):
            raise OSError(number, os.strerror(number))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA])
def test_unreadable_sectors(
    store: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Everything else is saved, and it is told what is missing."""
    data = bytearray(random.Random(7).randbytes(SIZE))
    disk.write_bytes(data)
    with monkeypatch.context() as patch:
        bad_places(patch, lambda sector: sector in (3, 4, 700, SIZE // 4096), number)
        saved = save(store, {"disk.img": disk})
    for sector in (3, 4, 700, SIZE // 4096):
        end = min((sector + 1) * 4096, SIZE)
        data[sector * 4096 : end] = bytes(end - sector * 4096)
    (error,) = saved.result.errors
    last = SIZE // 4096 * 4096
    assert error.reason.endswith(f"bytes 12288-20479, 2867200-2871295, {last}-{SIZE - 1}")
    assert error.reason.startswith(f"{3 * 4096 + SIZE - last} bytes could not be read")
    check(store, saved, bytes(data), tmp_path / "out")


@pytest.mark.parametrize(("number", "limit"), [(errno.EIO, 10 * 4096), (errno.ENXIO, 1 << 30)])
def test_source_that_is_gone(store: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, number: int, limit: int) -> None:
    disk.write_bytes(random.Random(8).randbytes(SIZE))
    bad_places(monkeypatch, lambda sector: sector >= 100, number)
    monkeypatch.setattr(source_image, "_UNREADABLE_AT_MOST", limit)
    with pytest.raises(ArchiverError, match="read") as caught:
        save(store, {"disk.img": disk})
    assert caught.value.exit_code == 1, "it is not the store that is damaged"
    nothing_is_left(store)


def nothing_is_left(path: Path) -> None:
    """Of a run that failed."""
    with Store.open(path) as store:
        assert every_snapshot(store) == []
    assert os.listdir(path / ".archiver/sessions") == []


# Streams.


def feed(fifo: Path, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=fifo.write_bytes, args=(data,))
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 4 << 20, 5_000_000])
def test_fifo(store: Path, tmp_path: Path, size: int) -> None:
    data = random.Random(9).randbytes(size)
    os.mkfifo(tmp_path / "fifo")
    thread = feed(tmp_path / "fifo", data)
    saved = save(store, {"disk.img": tmp_path / "fifo"}, mode="metadata")
    thread.join()
    check(store, saved, data, tmp_path / "out")


def test_empty_stream(store: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    thread = feed(tmp_path / "fifo", b"")
    with pytest.raises(ArchiverError, match="is empty"):
        save(store, {"disk.img": tmp_path / "fifo"})
    thread.join()
    nothing_is_left(store)


def test_chunks_of_an_interrupted_run_are_kept(
    store: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run reads the image again, and stores nothing twice."""
    data = random.Random(10).randbytes(SIZE)
    disk.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_KEPT_FROM", 1 << 20)

        def fail() -> None:
            while len(chunk_files(store)) < 24:  # of the 32 that the threads have been given
                time.sleep(0.01)
            raise KeyboardInterrupt

        interfere(patch, 2 << 20, fail)
        with pytest.raises(KeyboardInterrupt):
            save(store, {"disk.img": disk})
    make_old(store)
    there = len(chunk_files(store))
    assert there >= 24 and gc(store).removed_chunks <= 12, "but for what was not in the index file yet"
    saved = save(store, {"disk.img": disk})
    assert new_chunks(saved) <= -(-SIZE // CHUNK_SIZE) - there + 12
    check(store, saved, data, tmp_path / "out")
    assert os.listdir(store / ".archiver/sessions") == []


# Small files.


@pytest.mark.parametrize("size", [0, 1, 100_000, blobs.LARGEST_BLOB])
def test_sizes_of_small_files(store: Path, disk: Path, tmp_path: Path, size: int) -> None:
    disk.write_bytes(random.Random(11).randbytes(min(size, 1 << 16)) * (size >> 16 or 1))
    saved = save(store, {"disk.conf": disk}, crypt=KEY)
    bring_back(store, saved.snapshot, tmp_path / "out", crypt=KEY)
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()
    assert saved.result.archives[0].counters.size == disk.stat().st_size


def test_too_large_for_a_small_file(store: Path, disk: Path) -> None:
    disk.touch()
    os.truncate(disk, blobs.LARGEST_BLOB + 1)
    with pytest.raises(UsageError, match="larger than 16 MiB") as caught:
        save(store, {"disk.conf": disk})
    assert f"disk.img:{disk}" in str(caught.value.hint)
    nothing_is_left(store)


@pytest.mark.parametrize(("times", "torn"), [(1, 0), (9, 1)])
def test_small_file_that_changes(
    store: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, times: int, torn: int
) -> None:
    disk.write_bytes(b"old")
    left = [times]

    def read(fd: int, view: memoryview, offset: int) -> int:
        if left[0]:
            left[0] -= 1
            disk.write_bytes(b"new" * left[0])
        return read_into(fd, view, offset)

    monkeypatch.setattr(blobs, "read_into", read)
    saved = save(store, {"disk.conf": disk})
    assert saved.result.files.torn == len(saved.result.errors) == torn
    assert not torn or saved.problems[-1].path == b"disk.conf"


def test_small_file_that_cannot_be_read(store: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_bytes(b"contents")
    bad_places(monkeypatch, lambda sector: True)
    with pytest.raises(ArchiverError, match=f"cannot read {disk}") as caught:
        save(store, {"disk.conf": disk})
    assert caught.value.exit_code == 1
    nothing_is_left(store)


def test_notices(store: Path, disk: Path) -> None:
    sparse(disk)
    heard = Heard()
    save(store, {"disk.img": disk}, mode="metadata", heard=heard)
    save(store, {"disk.img": disk}, mode="metadata", heard=heard)
    assert [text for text in heard.notices if "img" in text] == []
