"""--audit: contents that are not what was stored although the metadata are the same, and rot in the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archiver.backup.audit import Audit
from archiver.browse.verify import verify
from archiver.core.disk import read_at
from archiver.core.events import ignore
from archiver.core.row import ROW, file_row
from archiver.store.store import Store
from tests.attributes import write_sparse
from tests.random_trees import build_plain, noise
from tests.stores import CHUNK_SIZE, Saved, chunk_files, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    build_plain(root, 5, 60)
    (root / "victim").write_bytes(noise(1, 300_000))
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def reasons(saved: Saved) -> dict[bytes, str]:
    return {problem.path: problem.reason for problem in saved.result.errors if problem.kind == "audit"}


def forge(path: Path, content: bytes, like: os.stat_result) -> bool:
    """Other contents of the same size and modification time; whether the change time too is what it was."""
    path.write_bytes(content)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
    return file_row(path.stat()) == file_row(like)


def test_unchanged_files_pass(store: Path, source: Path, tmp_path: Path) -> None:
    save(store, source, mode="metadata")
    saved = save(store, source, mode="metadata", audit=100)
    files = saved.result.files
    assert files.audited == files.unchanged > 50 and files.reencoded == 0
    assert files.bytes_read == sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    assert reasons(saved) == {}
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_holes_are_not_read(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where they are whole chunks nor at their ends; what was zeros in the store and is data here is found."""
    source = tmp_path / "sparse"
    source.mkdir()
    largest = 4 * CHUNK_SIZE
    write_sparse(source / "a", 2000 * largest + 5, {0: noise(1, 5000), 1000 * largest + 77: noise(2, 9000)})
    write_sparse(source / "b", 300 * largest, {300 * largest - 1: b"b"})
    write_sparse(source / "c", 400 * largest, {100 * largest: bytes(2 * largest)})
    os.sync()
    count = 0

    def read(fd: int, length: int, offset: int = 0) -> bytes:
        nonlocal count
        count += length
        return read_at(fd, length, offset)

    save(store, source, mode="metadata", compare="metadata")
    monkeypatch.setattr("archiver.backup.audit.read_at", read)
    saved = save(store, source, mode="metadata", compare="metadata", audit=100)
    assert saved.result.files.audited == 3 and reasons(saved) == {}
    assert count <= 16 * largest
    for name, place in (("a", 1500 * largest + 3), ("b", 0), ("c", 399 * largest)):
        before = (source / name).stat()
        with open(source / name, "r+b") as file:
            os.pwrite(file.fileno(), b"x", place)
        os.utime(source / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = save(store, source, mode="metadata", compare="metadata", audit=100)
    assert sorted(reasons(found)) == [b"/a", b"/b", b"/c"]
    with Store.open(store) as opened:
        assert verify(opened, [found.snapshot], None, ignore).error_count == 0


def test_all_shares_make_the_whole(store: Path, source: Path) -> None:
    save(store, source, mode="metadata")
    audited = [save(store, source, mode="metadata", audit=20).result.files.audited for _ in range(5)]
    total = sum(1 for path in source.rglob("*") if path.is_file())
    assert sum(audited) == total and max(audited) < total


def test_other_contents_behind_the_same_metadata(store: Path, source: Path, tmp_path: Path) -> None:
    """With --compare metadata, as on file systems without trustworthy change times."""
    save(store, source, mode="metadata", compare="metadata")
    before = (source / "victim").stat()
    forge(source / "victim", noise(2, 300_000), before)
    missed = save(store, source, mode="metadata", compare="metadata")
    assert missed.result.files.reencoded == 0 and reasons(missed) == {}
    found = save(store, source, mode="metadata", compare="metadata", audit=100)
    assert list(reasons(found)) == [b"/victim"] and found.result.files.reencoded >= 1
    assert restored_differences(store, found.snapshot, source, tmp_path / "out") == []
    again = save(store, source, mode="metadata", compare="metadata", audit=100)
    assert reasons(again) == {} and again.result.files.reencoded == 0


def test_a_changed_change_time_is_enough(store: Path, source: Path, tmp_path: Path) -> None:
    """Where change times are believed, the same forgery is seen without any audit."""
    save(store, source, mode="metadata")
    before = (source / "victim").stat()
    assert not forge(source / "victim", noise(2, 300_000), before)
    saved = save(store, source, mode="metadata")
    assert saved.result.files.bytes_read >= 300_000
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_a_damaged_chunk_is_stored_again(store: Path, source: Path, tmp_path: Path) -> None:
    save(store, source, mode="metadata")
    largest = max(chunk_files(store), key=lambda path: path.stat().st_size)
    data, status = bytearray(largest.read_bytes()), largest.stat()
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    os.utime(largest, ns=(status.st_atime_ns, status.st_mtime_ns))
    saved = save(store, source, mode="metadata", audit=100)
    assert reasons(saved) and all("cannot be read" in reason for reason in reasons(saved).values())
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_shares_do_not_overlap() -> None:
    rows = [ROW.pack(inode, 5, 1, 1) for inode in range(1000, 2000)]
    chosen = [[Audit(25, turn, None, None, print).chooses(row) for turn in range(4)] for row in rows]  # type: ignore[arg-type]
    assert all(sum(each) == 1 for each in chosen)
    assert all(150 < sum(column) < 350 for column in zip(*chosen, strict=True))
