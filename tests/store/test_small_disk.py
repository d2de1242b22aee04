"""A read-only disk and a full one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.store.store import Store
from tests.mounts import fill, read_only_view, small_file_system
from tests.random_trees import build_plain, noise
from tests.stores import archiver, damage, every_snapshot, listing, restored_differences, save

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=30, max_size=50_000)
    return tmp_path / "source"


@pytest.mark.parametrize("with_database", [True, False])
def test_read_only_disk(tmp_path: Path, source: Path, with_database: bool) -> None:
    """Everything that reads works, nothing is written, and a backup is refused with a reason."""
    path = tmp_path / "store"
    Store.create(path)
    save(path, source)
    if not with_database:
        for file in (path / ".archiver" / "db").iterdir():
            file.unlink()
    before = listing(path)
    told = ""
    with read_only_view(path, tmp_path / "view") as view:
        for arguments in (["snapshots"], ["groups"], ["files", "latest"], ["ls", "latest"], ["verify"], ["status"]):
            done = archiver("--store", view, *arguments)
            assert done.returncode == 0, (arguments, done.stderr)
            told += done.stderr
        assert told == "reading 1 snapshots into a new database\n"
        done = archiver("--store", view, "restore", "latest", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        done = archiver("--store", view, "backup", source)
        assert done.returncode == 2 and "read-only" in done.stderr
    assert listing(path) == before


def test_read_only_disk_with_the_database_elsewhere(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    Store.create(path)
    save(path, source)
    before = listing(path)
    monkeypatch.setenv("ARCHIVER_DB_DIR", str(tmp_path / "db"))
    with read_only_view(path, tmp_path / "view") as view:
        for told in ("reading 1 snapshots into a new database\n", ""):
            done = archiver("--store", view, "status")
            assert (done.returncode, done.stderr) == (0, told)
        assert damage(view) == []
    assert len(list((tmp_path / "db").glob("*/data.mdb"))) == 1
    assert listing(path) == before


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A store on a disk of 24 MiB, with one snapshot."""
    with small_file_system(tmp_path, 24 * MIB) as place:
        Store.create(place / "store")
        yield place / "store"


def check_no_space(done_code: int, errors: str) -> None:
    assert done_code == 40, errors
    lines = [line for line in errors.splitlines() if not line.startswith(("encryption:", "this may not fit:"))]
    assert lines[0].startswith("archiver: no space left to ") and lines[1].startswith("  (") and len(lines) == 2


def test_backup_larger_than_the_disk(small: Path, source: Path, tmp_path: Path) -> None:
    first = save(small, source).snapshot
    large = tmp_path / "large"
    large.mkdir()
    (large / "data").write_bytes(noise(1, 40 * MIB))
    done = archiver("--store", small, "backup", large, "--id", "large")
    check_no_space(done.returncode, done.stderr)
    assert "\nthis may not fit: the sources hold 40 MiB, and " in done.stderr
    assert list((small / ".chunks").rglob("*.tmp_*")) == []
    assert os.listdir(small / ".archiver" / "sessions") == []
    with Store.open(small) as store:
        assert every_snapshot(store) == [first]
    assert damage(small) == []
    assert restored_differences(small, first, source, tmp_path / "out") == []
    (source / "one more").write_bytes(noise(5, 10_000))
    second = save(small, source)
    assert restored_differences(small, second.snapshot, source, tmp_path / "again") == []
    assert damage(small) == []


@pytest.mark.parametrize("leave", [0, 8 << 10, 40 << 10, 200 << 10])
def test_backup_to_a_full_disk(small: Path, source: Path, tmp_path: Path, leave: int) -> None:
    """Wherever the space ends: session, chunk, index, manifest, directory or database."""
    first = save(small, source).snapshot
    fill(small.parent, leave)
    (source / "one more").write_bytes(noise(5, 100_000))
    done = archiver("--store", small, "backup", source, "--id", "test")
    if done.returncode:
        check_no_space(done.returncode, done.stderr)
    with Store.open(small) as store:
        refs = every_snapshot(store)
        assert refs[0] == first and len(refs) == 1 + (done.returncode == 0)
        assert all(store.is_finished(ref) for ref in refs)
    assert damage(small) == []
    assert restored_differences(small, first, source, tmp_path / "old") != []  # "one more" is not in it
    (small.parent / "filler").unlink()
    result = save(small, source)
    assert damage(small) == []
    assert restored_differences(small, result.snapshot, source, tmp_path / "new") == []
    assert os.listdir(small / ".archiver" / "sessions") == []


def test_store_cannot_be_made_on_a_full_disk(tmp_path: Path) -> None:
    with small_file_system(tmp_path, MIB) as place:
        fill(place)
        for number in range(10_000):
            try:
                (place / f"empty-{number}").mkdir()
            except OSError:
                break
        done = archiver("init", place / "store")
        check_no_space(done.returncode, done.stderr)
        assert not (place / "store").exists()
